//! A systemd unit: `systemd.service(5)`, `systemd.exec(5)`; quoting as in `systemd.syntax(7)`.

use std::path::PathBuf;

use crate::service::{Installation, Service, commands};

/// What installing takes on Linux.
pub(super) fn installation(service: &Service) -> Installation {
    let unit = format!("pomona-{}.service", service.part);
    let reload: &[&str] = &["systemctl", "daemon-reload"];
    let enable: &[&str] = &["systemctl", "enable", &unit];
    // One that runs already is replaced.
    let restart: &[&str] = &["systemctl", "restart", &unit];
    Installation {
        path: PathBuf::from(format!("/etc/systemd/system/{unit}")),
        content: content(service),
        load: commands(&[reload, enable, restart], false),
        unload: commands(&[&["systemctl", "disable", "--now", &unit]], true),
        log: format!("journalctl -u {unit}"),
    }
}

fn content(service: &Service) -> String {
    let words: Vec<String> = service
        .arguments()
        .iter()
        .map(|word| command_word(word))
        .collect();
    let environment: Vec<String> = service
        .environment
        .iter()
        .map(|(name, value)| format!("Environment={}\n", quoted(&format!("{name}={value}"))))
        .collect();
    // Restarted when it fails, not when it ends well: a rented machine that has left stays away.
    format!(
        "[Unit]\n\
         Description=Pomona {part}\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         \n\
         [Service]\n\
         ExecStart={command}\n\
         {environment}\
         User={user}\n\
         Restart=on-failure\n\
         RestartSec=2\n\
         TimeoutStopSec=20\n\
         LimitNOFILE=8192\n\
         NoNewPrivileges=yes\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        part = service.part,
        command = words.join(" "),
        environment = environment.concat(),
        user = service.user,
    )
}

/// One word, or one assignment: `%` begins a specifier everywhere.
fn quoted(text: &str) -> String {
    let inner = text
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('%', "%%")
        .replace('\n', "\\n");
    format!("\"{inner}\"")
}

/// A word of a command: there `$` begins a variable as well.
fn command_word(text: &str) -> String {
    quoted(text).replace('$', "$$")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::samples::awkward;

    #[test]
    fn a_unit_runs_as_its_user_with_everything_quoted() {
        let made = installation(&awkward());
        assert_eq!(
            made.path,
            PathBuf::from("/etc/systemd/system/pomona-node.service")
        );
        for line in [
            r#"ExecStart="/opt/pomona & co/pomona" "--config" "/etc/pomona \"x\".toml" "node""#,
            r#"Environment="POMONA_NODE_NAME=Ada's <mini> \\ $HOME""#,
            r#"Environment="POMONA_STATE=/home/ada/100%%""#,
            "User=ada",
            "Restart=on-failure",
        ] {
            assert!(
                made.content.lines().any(|own| own == line),
                "{line}: {}",
                made.content
            );
        }
    }
}

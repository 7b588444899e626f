//! A launchd daemon: `launchd.plist(5)`, `launchctl(1)`.

use std::path::PathBuf;

use crate::service::{Installation, Service, commands};

/// What installing takes on macOS.
pub(super) fn installation(service: &Service) -> Installation {
    let label = format!("dev.pomona.{}", service.part);
    let path = PathBuf::from(format!("/Library/LaunchDaemons/{label}.plist"));
    let place = path.to_string_lossy().into_owned();
    let target = format!("system/{label}");
    let log = service.state.join(format!("{}.log", service.part));
    // One that is loaded already is replaced.
    let mut load = commands(&[&["launchctl", "bootout", &target]], true);
    load.extend(commands(&[&["launchctl", "bootstrap", "system", &place]], false));
    Installation {
        path,
        content: plist(service, &label, &log.to_string_lossy()),
        load,
        unload: commands(&[&["launchctl", "bootout", &target]], true),
        log: log.to_string_lossy().into_owned(),
    }
}

fn plist(service: &Service, label: &str, log: &str) -> String {
    let string = |text: &str| format!("<string>{}</string>", escaped(text));
    let arguments: Vec<String> = service
        .arguments()
        .iter()
        .map(|word| format!("    {}\n", string(word)))
        .collect();
    let environment: Vec<String> = service
        .environment
        .iter()
        .map(|(name, value)| format!("    <key>{}</key>{}\n", escaped(name), string(value)))
        .collect();
    // Restarted when it fails, not when it ends well: a rented machine that has left stays away.
    // Interactive: launchd would slow a standard job down, and its engine with it.
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key>{label}
  <key>ProgramArguments</key>
  <array>
{arguments}  </array>
  <key>EnvironmentVariables</key>
  <dict>
{environment}  </dict>
  <key>UserName</key>{user}
  <key>RunAtLoad</key><true/>
  <key>KeepAlive</key>
  <dict><key>SuccessfulExit</key><false/></dict>
  <key>ThrottleInterval</key><integer>2</integer>
  <key>ExitTimeOut</key><integer>20</integer>
  <key>ProcessType</key><string>Interactive</string>
  <key>SoftResourceLimits</key>
  <dict><key>NumberOfFiles</key><integer>8192</integer></dict>
  <key>StandardErrorPath</key>{log}
</dict>
</plist>
"#,
        label = string(label),
        arguments = arguments.concat(),
        environment = environment.concat(),
        user = string(&service.user),
        log = string(log),
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::samples::awkward;

    #[test]
    fn a_daemon_runs_as_its_user_with_everything_escaped() {
        let made = installation(&awkward());
        assert_eq!(
            made.path,
            PathBuf::from("/Library/LaunchDaemons/dev.pomona.node.plist")
        );
        for part in [
            "<key>UserName</key><string>ada</string>",
            "<string>/opt/pomona &amp; co/pomona</string>\n    <string>--config</string>",
            "<key>POMONA_NODE_NAME</key><string>Ada's &lt;mini&gt; \\ $HOME</string>",
            "<dict><key>SuccessfulExit</key><false/></dict>",
        ] {
            assert!(made.content.contains(part), "{part}: {}", made.content);
        }
        assert_eq!(
            made.content.matches("<dict>").count(),
            made.content.matches("</dict>").count()
        );
        let last = &made
            .load
            .last()
            .map(|(command, may_fail)| (command.join(" "), *may_fail));
        let bootstrap = "launchctl bootstrap system /Library/LaunchDaemons/dev.pomona.node.plist";
        assert_eq!(*last, Some((bootstrap.to_owned(), false)));
    }
}

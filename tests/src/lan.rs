//! A LAN of the test's own: network namespaces as hosts on a bridge in one more namespace, so
//! that nothing of this machine's network is touched. Needs root.

use std::ffi::OsStr;
use std::process::{Child, ChildStdin, Command, Stdio};

/// The bridge and its hosts; gone with the value.
pub struct Lan {
    name: String,
    hosts: Vec<String>,
}

impl Lan {
    /// A bridge without hosts; `None` where this process may not make namespaces.
    pub fn new() -> Option<Self> {
        let lan = Self {
            name: format!("pom{}", std::process::id()),
            hosts: Vec::new(),
        };
        let switch = lan.switch();
        let made = ip(&["netns", "add", &switch])
            && ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])
            && ip(&["-n", &switch, "link", "set", "br0", "up"]);
        made.then_some(lan)
    }

    /// Adds a host with an address of 10.77.0.0/16; gives its namespace.
    pub fn host(&mut self, address: &str) -> String {
        let (namespace, switch) = (format!("{}h{}", self.name, self.hosts.len()), self.switch());
        let port = format!("port{}", self.hosts.len());
        self.hosts.push(namespace.clone());
        let done = ip(&["netns", "add", &namespace])
            && ip(&[
                "-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns",
                &namespace,
            ])
            && ip(&["-n", &switch, "link", "set", &port, "master", "br0"])
            && ip(&["-n", &switch, "link", "set", &port, "up"])
            && ip(&["-n", &namespace, "link", "set", "lo", "up"])
            && ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        assert!(done, "no host could be made");
        self.address(&namespace, address);
        namespace
    }

    /// Gives a host another address, as a DHCP server would.
    pub fn address(&self, namespace: &str, address: &str) {
        let done = ip(&["-n", namespace, "addr", "flush", "dev", "eth0"])
            && ip(&[
                "-n",
                namespace,
                "addr",
                "add",
                &format!("{address}/16"),
                "dev",
                "eth0",
            ])
            && ip(&["-n", namespace, "route", "replace", "default", "dev", "eth0"]);
        assert!(done, "{namespace} got no address");
    }

    /// Lets a host speak only with hosts that are not isolated, as guest networks do.
    pub fn isolate(&self, host: usize) {
        self.set_port(host, &["type", "bridge_slave", "isolated", "on"]);
    }

    /// What a host sends to an address is lost, or goes there again; what comes from there arrives.
    pub fn cut(&self, namespace: &str, to: &str, cut: bool) {
        let what = if cut { "replace" } else { "del" };
        assert!(ip(&["-n", namespace, "route", what, "blackhole", to]));
    }

    /// Plugs a host's cable in or out.
    pub fn plug(&self, host: usize, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        self.set_port(host, &[state]);
    }

    fn set_port(&self, host: usize, how: &[&str]) {
        let (switch, port) = (self.switch(), format!("port{host}"));
        assert!(ip(&[&["-n", &switch, "link", "set", &port], how].concat()));
    }

    fn switch(&self) -> String {
        format!("{}sw", self.name)
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for namespace in self.hosts.iter().chain([&self.switch()]) {
            ip(&["netns", "del", namespace]);
        }
    }
}

/// A command that runs a program on a host.
pub fn command_on(namespace: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

/// This very test program as another one on a host, told so by its first argument; it ends with the
/// value.
pub struct Errand(Child);

impl Errand {
    /// Starts it; its standard input is a pipe.
    pub fn start(namespace: &str, arguments: &[&str]) -> Self {
        let own = std::env::current_exe().expect("this program");
        let mut command = command_on(namespace, own);
        let started = command.args(arguments).stdin(Stdio::piped()).spawn();
        Self(started.expect("this program starts again"))
    }

    /// Its standard input.
    pub fn input(&mut self) -> &mut ChildStdin {
        self.0.stdin.as_mut().expect("a pipe")
    }
}

impl Drop for Errand {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ip(arguments: &[&str]) -> bool {
    let status = Command::new("ip").args(arguments).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

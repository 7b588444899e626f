//! A LAN of the test's own: network namespaces as hosts on a bridge in one more namespace, so
//! that nothing of this machine's network is touched. Needs root.

use std::process::{Command, Stdio};

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
        assert!(ip(&[
            "-n",
            &self.switch(),
            "link",
            "set",
            &format!("port{host}"),
            "type",
            "bridge_slave",
            "isolated",
            "on"
        ]));
    }

    /// What a host sends to an address is lost, or goes there again; what comes from there arrives.
    pub fn cut(&self, namespace: &str, to: &str, cut: bool) {
        let what = if cut { "replace" } else { "del" };
        assert!(ip(&["-n", namespace, "route", what, "blackhole", to]));
    }

    /// Plugs a host's cable in or out.
    pub fn plug(&self, host: usize, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        assert!(ip(&[
            "-n",
            &self.switch(),
            "link",
            "set",
            &format!("port{host}"),
            state
        ]));
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

fn ip(arguments: &[&str]) -> bool {
    let status = Command::new("ip").args(arguments).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

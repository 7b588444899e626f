//! What a service on the LAN says, read with distrust.

use std::net::{IpAddr, SocketAddr};

use mdns_sd::ResolvedService;
use pomona_common::{ClusterId, NodeId};

/// Addresses that are looked at of one service: machines have a few interfaces.
const ADDRESSES: usize = 8;

/// Who is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The coordinator with this number.
    Coordinator(u64),
    /// The node with this id, which gives weights there.
    Node(NodeId),
}

/// Somebody says that somebody is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// Of this cluster.
    pub cluster: ClusterId,
    /// Who.
    pub who: Who,
    /// Where.
    pub address: SocketAddr,
}

impl Sighting {
    /// The number of a coordinator.
    pub fn coordinator(&self) -> Option<u64> {
        match self.who {
            Who::Coordinator(number) => Some(number),
            Who::Node(_) => None,
        }
    }
}

/// The sightings in one service; none when it is not what it should be.
pub(crate) fn of(service: &ResolvedService) -> Vec<Sighting> {
    let property = |name: &str| service.get_property_val_str(name);
    let addresses = service.addresses.iter().map(mdns_sd::ScopedIp::to_ip_addr);
    read(
        property("v"),
        property("cluster"),
        (property("n"), property("node")),
        service.port,
        addresses,
    )
}

fn read(
    version: Option<&str>,
    cluster: Option<&str>,
    (number, node): (Option<&str>, Option<&str>),
    port: u16,
    addresses: impl Iterator<Item = IpAddr>,
) -> Vec<Sighting> {
    let sound = version == Some("1") && port != 0;
    let cluster = cluster.and_then(|text| text.parse().ok());
    let number = number.map(|text| text.parse().ok().map(Who::Coordinator));
    let node = node.map(|text| text.parse().ok().map(Who::Node));
    // One of the two.
    let who = number.xor(node).flatten();
    let (true, Some(cluster), Some(who)) = (sound, cluster, who) else {
        return Vec::new();
    };
    let sighting = |ip| Sighting {
        cluster,
        who,
        address: SocketAddr::new(ip, port),
    };
    addresses
        .filter(may_be_dialled)
        .take(ADDRESSES)
        .map(sighting)
        .collect()
}

/// Nobody on the LAN makes this process talk to itself, to everybody, or to an address that
/// means something else on every interface.
fn may_be_dialled(ip: &IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || link_local)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = "0000000000000000000000000000002a";

    fn addresses(texts: &[&str]) -> impl Iterator<Item = IpAddr> {
        let parsed: Vec<IpAddr> = texts.iter().filter_map(|text| text.parse().ok()).collect();
        parsed.into_iter()
    }

    #[test]
    fn a_coordinator_is_seen_at_each_of_its_addresses() {
        let seen = read(
            Some("1"),
            Some(CLUSTER),
            (Some("3"), None),
            7712,
            addresses(&["10.0.0.1", "fd00::1"]),
        );
        assert_eq!(seen.len(), 2);
        assert!(seen.iter().all(
            |sighting| sighting.coordinator() == Some(3) && sighting.cluster == ClusterId::from_bits(42)
        ));
    }

    #[test]
    fn what_is_not_sound_is_not_seen() {
        let lan = ["10.0.0.1"];
        for (version, cluster, number, port, ips) in [
            (None, Some(CLUSTER), Some("3"), 7712, &lan[..]),
            (Some("2"), Some(CLUSTER), Some("3"), 7712, &lan[..]),
            (Some("1"), Some("cluster"), Some("3"), 7712, &lan[..]),
            (Some("1"), Some(CLUSTER), Some("-1"), 7712, &lan[..]),
            (
                Some("1"),
                Some(CLUSTER),
                Some("99999999999999999999"),
                7712,
                &lan[..],
            ),
            (Some("1"), Some(CLUSTER), Some("3"), 0, &lan[..]),
            (
                Some("1"),
                Some(CLUSTER),
                Some("3"),
                7712,
                &["127.0.0.1", "0.0.0.0", "224.0.0.251", "fe80::1", "::"][..],
            ),
            (Some("1"), Some(CLUSTER), Some("3"), 7712, &[][..]),
        ] {
            assert_eq!(read(version, cluster, (number, None), port, addresses(ips)), []);
            assert_eq!(read(version, cluster, (None, None), port, addresses(ips)), []);
        }
    }

    #[test]
    fn a_service_with_many_addresses_counts_as_few() {
        let many = (0..255u8).map(|n| IpAddr::from([10, 0, 0, n]));
        assert_eq!(
            read(Some("1"), Some(CLUSTER), (Some("3"), None), 7712, many).len(),
            ADDRESSES
        );
    }

    #[test]
    fn a_node_is_no_coordinator_and_nobody_is_both() {
        let read = |number, node| {
            read(
                Some("1"),
                Some(CLUSTER),
                (number, node),
                7713,
                addresses(&["10.0.0.1"]),
            )
        };
        let seen = read(None, Some(CLUSTER));
        assert_eq!(seen[0].who, Who::Node(NodeId::from_bits(42)));
        assert_eq!(seen[0].coordinator(), None);
        assert_eq!(read(Some("3"), Some(CLUSTER)), []);
        assert_eq!(read(None, Some("mini")), []);
    }
}

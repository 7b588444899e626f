//! Where others reach a port of this machine.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

/// An address that other machines can dial: where every interface is listened on, the one that
/// packets to `toward` leave by, or to the outside when nobody is known yet. Nothing is sent.
pub(crate) fn reachable(listens: SocketAddr, toward: Option<IpAddr>) -> SocketAddr {
    if !listens.ip().is_unspecified() {
        return listens;
    }
    // 192.0.2.0/24 is for documentation: every default route leads there.
    let toward = toward.unwrap_or(Ipv4Addr::new(192, 0, 2, 1).into());
    let from: IpAddr = match toward {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let local = UdpSocket::bind((from, 0))
        .and_then(|socket| socket.connect((toward, 9)).and_then(|()| socket.local_addr()));
    let ip = local.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip());
    SocketAddr::new(ip, listens.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_was_chosen_is_kept_and_the_way_decides_otherwise() {
        let chosen = SocketAddr::from(([10, 1, 2, 3], 7712));
        assert_eq!(reachable(chosen, None), chosen);
        let every = SocketAddr::from(([0, 0, 0, 0], 7712));
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(reachable(every, Some(loopback)), SocketAddr::new(loopback, 7712));
    }
}

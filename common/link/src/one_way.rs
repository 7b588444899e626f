//! A line that is cut in one direction.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pomona_common::{ClusterId, NodeId};
use tokio::net::UdpSocket;

use crate::identity::Role;
use crate::matrix::loopback;
use crate::{Accepted, Authority, Endpoint, LinkError, Purpose};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

/// Passes datagrams of one client on, and those that come back, but for the direction that is cut.
async fn relay(near: UdpSocket, server: SocketAddr, cut: &Mutex<Option<Direction>>) -> std::io::Result<()> {
    let passes = |direction| *cut.lock().unwrap_or_else(PoisonError::into_inner) != Some(direction);
    let far = UdpSocket::bind(loopback()).await?;
    let (mut up, mut down) = ([0; 2048], [0; 2048]);
    let mut client = None;
    loop {
        tokio::select! {
            received = near.recv_from(&mut up) => {
                let (len, from) = received?;
                client = Some(from);
                if passes(Direction::Up) {
                    far.send_to(&up[..len], server).await?;
                }
            }
            received = far.recv_from(&mut down) => {
                let (len, _) = received?;
                if let Some(client) = client.filter(|_| passes(Direction::Down)) {
                    near.send_to(&down[..len], client).await?;
                }
            }
        }
    }
}

/// More than a fresh connection's congestion window holds.
const WINDOWFUL: usize = 200_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ends_notice_a_line_that_is_cut_in_one_direction() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::open_or_create(folder.path(), ClusterId::from_bits(1))?;
    let server = Endpoint::server(loopback(), authority.issue(Role::Coordinator(1))?)?;
    let client = Endpoint::client(loopback(), authority.issue(Role::Node(NodeId::from_bits(7)))?)?;
    // Also when more waits to be sent than the line has room for.
    for (direction, busy) in [
        (Direction::Up, false),
        (Direction::Down, false),
        (Direction::Down, true),
    ] {
        let cut = Mutex::new(None);
        let near = UdpSocket::bind(loopback()).await?;
        let address = near.local_addr()?;
        let accepted = async {
            let incoming = server
                .accept()
                .await
                .ok_or_else(|| LinkError::Closed("closed".into()))?;
            match incoming.finish().await? {
                Accepted::Session(session) => Ok(session),
                _ => Err(LinkError::Closed("no session".into())),
            }
        };
        let talk = async {
            let (here, there) = tokio::try_join!(client.dial(address, Purpose::Control), accepted)?;
            tokio::time::sleep(Duration::from_secs(4)).await;
            assert!(here.is_open() && there.is_open(), "a quiet line is no cut one");
            *cut.lock().unwrap_or_else(PoisonError::into_inner) = Some(direction);
            let began = Instant::now();
            let (mut send, _receive) = here.open().await?;
            if busy {
                send.send_bytes(&[0; WINDOWFUL]).await?;
            }
            tokio::join!(here.ended(), there.ended());
            let took = began.elapsed();
            assert!(
                took < Duration::from_millis(3200),
                "{direction:?}, busy {busy}: {took:?}"
            );
            Ok::<(), LinkError>(())
        };
        tokio::select! {
            ended = relay(near, server.local_address()?, &cut) => ended?,
            talked = talk => talked?,
        }
    }
    Ok(())
}

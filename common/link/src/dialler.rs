//! Dials from one socket for each kind of address, as often as wanted. A socket has buffers of megabytes:
//! who knocks at many doors, as hints on a LAN name them, must not open one for each.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::LinkError;
use crate::endpoint::{Purpose, any_port_toward, client_socket, open};
use crate::identity::Identity;
use crate::session::Session;

/// After so many dials in a row that nobody answered another port is taken: a router may have mislaid what
/// belongs to the present one. Sessions that are open keep theirs.
const FAILED: u32 = 16;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Dialler {
    v4: Mutex<Option<quinn::Endpoint>>,
    v6: Mutex<Option<quinn::Endpoint>>,
    /// Dials in a row that nobody answered.
    failed: AtomicU32,
}

impl Dialler {
    /// As [`Endpoint::dial`](crate::Endpoint::dial), with this certificate.
    ///
    /// # Errors
    /// As that, and no port is free.
    pub async fn dial(
        &self,
        address: SocketAddr,
        purpose: Purpose,
        identity: &Identity,
    ) -> Result<Session, LinkError> {
        let socket = self.socket(address)?;
        let opened = open(&socket, (identity, u16::MAX), address, purpose).await;
        match &opened {
            // Such as that the machine slept, and its interfaces are new ones.
            Err(LinkError::SocketLost) => {
                self.forget(address);
                let socket = self.socket(address)?;
                return open(&socket, (identity, u16::MAX), address, purpose).await;
            }
            Err(_) if self.failed.fetch_add(1, Ordering::Relaxed) >= FAILED => {
                self.failed.store(0, Ordering::Relaxed);
                self.forget(address);
            }
            Err(_) => {}
            Ok(_) => self.failed.store(0, Ordering::Relaxed),
        }
        opened
    }

    fn forget(&self, address: SocketAddr) {
        *self
            .of_kind(address)
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn of_kind(&self, address: SocketAddr) -> &Mutex<Option<quinn::Endpoint>> {
        if address.is_ipv4() { &self.v4 } else { &self.v6 }
    }

    fn socket(&self, address: SocketAddr) -> Result<quinn::Endpoint, LinkError> {
        let mut socket = self
            .of_kind(address)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = &*socket {
            return Ok(socket.clone());
        }
        let opened = client_socket(any_port_toward(address))?;
        Ok(socket.insert(opened).clone())
    }
}

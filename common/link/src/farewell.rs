//! A goodbye that gets out. Up to 0.11.19 quinn-proto holds the frame that ends a connection back for
//! as long as its congestion window is full and anything waits to be sent, and that is for good: what
//! would empty the window stops with the connection
//! ([quinn 2785](https://github.com/quinn-rs/quinn/issues/2785)). A line that is cut in one direction
//! gets there by itself: who hears no acknowledgement fills the window, gives up, and the peer, which
//! hears everything but the goodbye, waits for as long again.
//!
//! So the window is opened before a connection is closed. What ends with its endpoint, or is dropped, does
//! without. The release after 0.11.19 does not need it
//! (2787); this file goes then.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use quinn::VarInt;
use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// Closes a connection and says so to the peer, however full the window is.
pub(crate) fn close(connection: &quinn::Connection, code: u32, reason: &[u8]) {
    if let Ok(window) = connection.congestion_state().into_any().downcast::<Window>() {
        window.opened.store(true, Ordering::Relaxed);
    }
    connection.close(VarInt::from_u32(code), reason);
}

/// Makes the windows of connections, by quinn's default, CUBIC (RFC 9438).
#[derive(Debug, Default)]
pub(crate) struct Windows(Arc<CubicConfig>);

impl ControllerFactory for Windows {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Window {
            inner: self.0.clone().build(now, current_mtu),
            opened: Arc::default(),
        })
    }
}

/// A congestion window that can be opened from outside.
struct Window {
    inner: Box<dyn Controller>,
    /// Shared by the copies that a connection hands out.
    opened: Arc<AtomicBool>,
}

impl Controller for Window {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        self.inner
            .on_congestion_event(now, sent, is_persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.opened.load(Ordering::Relaxed) {
            // quinn does not pace windows above 4 GiB either.
            return u64::MAX;
        }
        self.inner.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            opened: self.opened.clone(),
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

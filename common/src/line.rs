//! What lies between two machines. A line across the internet loses and delays more than a LAN: who is
//! silent on it gets more time before anybody believes that it is gone.

use std::time::Duration;

use serde::Serialize;

/// Round trips of a LAN are shorter; with Wi-Fi they are some milliseconds.
const WAN_ROUND_TRIP: Duration = Duration::from_millis(20);

/// See the module's documentation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// A network of one's own.
    #[default]
    Lan,
    /// Anything longer.
    Wan,
}

impl Line {
    /// By the round trip.
    pub fn of(round_trip: Duration) -> Self {
        if round_trip < WAN_ROUND_TRIP {
            Line::Lan
        } else {
            Line::Wan
        }
    }

    /// A peer that is silent for longer is gone. Keep-alives come every half second: on a LAN four in
    /// a row are lost then, on a WAN nineteen.
    pub const fn silence(self) -> Duration {
        match self {
            Line::Lan => Duration::from_millis(2500),
            Line::Wan => Duration::from_secs(10),
        }
    }

    /// A report that is older is late. Reports come every second; on a WAN one may be lost, and comes
    /// again after three round trips of a long line.
    pub const fn late(self) -> Duration {
        match self {
            Line::Lan => Duration::from_millis(1500),
            Line::Wan => Duration::from_secs(4),
        }
    }
}

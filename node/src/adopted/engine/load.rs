//! What a server has to do, whoever asked: people use theirs directly as well. Told by those that have an endpoint for
//! it; the others are taken to have nothing else to do.

use std::time::Duration;

use pomona_upstream::Client;
use serde_json::Value;

/// It is told at once, or not now.
const WAITS: Duration = Duration::from_secs(2);
/// One that tells nothing is asked again after so many looks, in five minutes: it may have been too busy to answer.
const RESTS: u32 = 150;
/// Looks in a row that say nothing until what was known is forgotten.
const MISSES: u32 = 3;
/// More is no load that a server has.
const MOST: u64 = 1024;

/// Where servers tell it, and how it is read there, for one of their models.
type Endpoint = (&'static str, fn(&Value, &str) -> Option<u64>);

const ENDPOINTS: [Endpoint; 3] = [
    ("/v1/batch/stats", of_batch_server),
    ("/v1/status", of_vllm_mlx),
    ("/slots", of_llama_server),
];

/// The load of one server.
#[derive(Default)]
pub(super) struct Load {
    /// Which of the endpoints it has.
    endpoint: Option<Endpoint>,
    /// So many looks it is not asked which.
    rests: u32,
}

impl Load {
    /// Looks again which endpoint it has: another process may be there.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Requests of a model that are worked on or wait, if that is told.
    pub(super) async fn look(&mut self, client: &Client, model: &str) -> Option<u64> {
        if let Some((path, read)) = self.endpoint {
            return Some(read(&told(client, path).await?, model)?.min(MOST));
        }
        if self.rests > 0 {
            self.rests -= 1;
            return None;
        }
        for (path, read) in ENDPOINTS {
            // Servers answer strange paths in strange ways; what cannot be read is not it.
            let told = told(client, path).await;
            if let Some(load) = told.and_then(|told| read(&told, model)) {
                self.endpoint = Some((path, read));
                return Some(load.min(MOST));
            }
        }
        self.rests = RESTS;
        None
    }
}

async fn told(client: &Client, path: &str) -> Option<Value> {
    tokio::time::timeout(WAITS, client.get_at(path)).await.ok()?.ok()
}

/// mlx-batch-server: a coordinator a model, which is made with the first request.
fn of_batch_server(told: &Value, model: &str) -> Option<u64> {
    let coordinators = told["coordinators"].as_object()?;
    let Some(coordinator) = coordinators.get(model) else {
        return Some(0);
    };
    let count = |name: &str| coordinator["coordinator"][name].as_u64();
    Some(count("active_requests")?.saturating_add(count("pending_requests").unwrap_or(0)))
}

/// vllm-mlx: what its engine counts, which the simple one does not, or what keeps its model loaded.
fn of_vllm_mlx(told: &Value, _model: &str) -> Option<u64> {
    let count = |name: &str| told[name].as_u64();
    let batched = count("num_running")?.saturating_add(count("num_waiting").unwrap_or(0));
    let resident = told["residency"]["active_requests"].as_u64().unwrap_or(0);
    Some(batched.max(resident))
}

/// llama-server: its slots. Those that it has not put aside for anybody wait unseen.
fn of_llama_server(told: &Value, _model: &str) -> Option<u64> {
    let slots = told.as_array().filter(|slots| !slots.is_empty())?;
    let works = slots.iter().map(|slot| slot["is_processing"].as_bool());
    let works: Option<Vec<bool>> = works.collect();
    Some(works?.into_iter().filter(|works| *works).count() as u64)
}

/// Others' part in the load of a server. What has just begun or ended here is told late, so only what was there twice
/// counts.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Others {
    before: u32,
    now: u32,
    missed: u32,
}

impl Others {
    /// The server tells its load, or not, of which so many requests are ours.
    pub(super) fn note(&mut self, load: Option<u64>, ours: u32) {
        let Some(load) = load else {
            self.missed += 1;
            if self.missed >= MISSES {
                *self = Self::default();
            }
            return;
        };
        self.missed = 0;
        self.before = self.now;
        self.now = u32::try_from(load).unwrap_or(u32::MAX).saturating_sub(ours);
    }

    pub(super) fn count(self) -> u32 {
        self.before.min(self.now)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_server_tells_it_in_its_own_way() {
        let batch = json!({
            "enabled": true,
            "coordinators": {"m": {"coordinator": {"active_requests": 2, "pending_requests": 1}, "generator": {}}},
        });
        assert_eq!(of_batch_server(&batch, "m"), Some(3));
        assert_eq!(of_batch_server(&batch, "other"), Some(0));
        let vllm = json!({"status": "running", "num_running": 1, "num_waiting": 4});
        assert_eq!(of_vllm_mlx(&vllm, "m"), Some(5));
        let simple = json!({"num_running": 0, "num_waiting": 0, "residency": {"active_requests": 2}});
        assert_eq!(of_vllm_mlx(&simple, "m"), Some(2));
        let llama = json!([{"id": 0, "is_processing": true}, {"id": 1, "is_processing": false}]);
        assert_eq!(of_llama_server(&llama, "m"), Some(1));
        for strange in [
            json!({"error": "Unexpected endpoint"}),
            json!([]),
            json!([{"id": 0}]),
            json!({"coordinators": {"m": {"coordinator": {"active_requests": -1}}}}),
            json!("ok"),
            json!({"num_running": "many"}),
        ] {
            for (path, read) in ENDPOINTS {
                assert_eq!(read(&strange, "m"), None, "{path}: {strange}");
            }
        }
    }

    #[test]
    fn others_count_once_they_were_seen_twice() {
        let mut others = Others::default();
        others.note(Some(3), 1);
        assert_eq!(others.count(), 0);
        others.note(Some(4), 1);
        assert_eq!(others.count(), 2);
        // A server that is too busy to tell is as busy as it was, for a while.
        for known in [2, 2, 0] {
            others.note(None, 1);
            assert_eq!(others.count(), known);
        }
        others.note(Some(4), 1);
        others.note(Some(0), 1);
        assert_eq!(others.count(), 0);
    }
}

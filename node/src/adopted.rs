//! Servers of other programs on this machine, as engines: `pomona engine adopt` writes a model folder that says where
//! the server is, and lends it the GPU. While it is lent, the node's engine process is a go-between
//! ([`engine`]) instead of `pomona-engine`: two programs that compute with Metal can take a Mac down.

pub mod engine;
pub mod servers;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pomona_cluster_config::server_address;
use pomona_common::{ModelDigests, ModelName, ModelRecord, ServerAddress};
use pomona_upstream::Client;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::files::write_whole;

/// In a model's folder: where it is instead of weights.
const ADOPTED: &str = "adopted.json";
/// In the node's folder: who has the GPU, where that is not the node's own engine.
const LEASE: &str = "gpu.json";

/// A model that a server has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// Where the server is, such as `http://127.0.0.1:8080/v1`.
    pub url: String,
    /// What it calls the model.
    pub model: String,
    /// Answers that it makes at once.
    pub slots: u32,
    /// Longest prompt and answer together, in tokens.
    pub context: u32,
    /// Bytes that the server took when it was adopted.
    pub memory_bytes: u64,
    /// When, in seconds since 1970.
    pub adopted_s: u64,
    /// The file with its API key, where it asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

/// Who has the GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuLease {
    /// The server that it is lent to.
    pub server: String,
}

impl Adopted {
    /// What a model's folder says, if it is one of these.
    pub fn read(folder: &Path) -> Option<io::Result<Self>> {
        let text = match fs::read_to_string(folder.join(ADOPTED)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => return Some(Err(error)),
        };
        Some(serde_json::from_str(&text).map_err(io::Error::from))
    }

    /// Makes it a model of the store, which a running node sees within seconds.
    ///
    /// # Errors
    /// The folder cannot be written, or has another model.
    pub fn write(&self, models: &Path, name: &ModelName) -> io::Result<PathBuf> {
        let folder = models.join(name.as_folder());
        let why_not = match Self::read(&folder) {
            None if folder.exists() => {
                Some("a model of this machine's own store: give this one another name")
            }
            Some(Ok(own)) if own.model != self.model => Some(
                "adopted already, as another model: `pomona engine release` first, or give this one another name",
            ),
            Some(_) | None => None,
        };
        if let Some(why_not) = why_not {
            return Err(io::Error::other(format!("`{name}` is {why_not}")));
        }
        if let Some(other) = self.is_adopted_as(models, &folder) {
            let why =
                format!("the server's model is adopted already, as `{other}`: `pomona engine release` first");
            return Err(io::Error::other(why));
        }
        fs::create_dir_all(&folder)?;
        let text = serde_json::to_string_pretty(self)?;
        write_whole(&folder.join(ADOPTED), &text)?;
        Ok(folder)
    }

    /// The name of another folder that has the same of this server: it would count as two.
    fn is_adopted_as(&self, models: &Path, own: &Path) -> Option<String> {
        let others = fs::read_dir(models).ok()?.flatten();
        let is_same = |folder: &Path| {
            let other = Self::read(folder).and_then(Result::ok);
            other.is_some_and(|other| (&other.url, &other.model) == (&self.url, &self.model))
        };
        others
            .map(|entry| entry.path())
            .find(|folder| folder != own && is_same(folder))
            .and_then(|folder| Some(folder.file_name()?.to_string_lossy().into_owned()))
    }

    /// Where its server is: on this machine, or nowhere.
    ///
    /// # Errors
    /// It is elsewhere, or no address.
    pub fn address(&self) -> Result<ServerAddress, String> {
        local_address(&self.url)
    }

    /// A client of its server.
    ///
    /// # Errors
    /// It is elsewhere, or its key cannot be read.
    pub fn client(&self) -> Result<Client, String> {
        servers::client(self.address()?, self.key_file.as_deref())
    }

    /// How the cluster knows it. All servers that have a model of this name have the same, as far as anybody can tell.
    pub fn record(&self, name: ModelName) -> ModelRecord {
        let digest: String = Sha256::digest(self.model.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        ModelRecord {
            name,
            digests: ModelDigests::adopted(&digest),
            // What the server takes it has taken already: nothing is to be found for it.
            weight_bytes: 0,
            dequantized_bytes: 0,
            kv_bytes_per_token: 0,
            context: self.context,
            created_s: self.adopted_s,
        }
    }
}

/// The address of a server on this machine.
///
/// # Errors
/// It is elsewhere, or no address.
pub fn local_address(url: &str) -> Result<ServerAddress, String> {
    // Plain HTTP is allowed to this machine only, which is what is wanted.
    let address = server_address(url, false)?;
    if address.tls {
        return Err("a server of this machine speaks http".to_owned());
    }
    Ok(address)
}

impl GpuLease {
    /// Who has it, if not the node's own engine.
    ///
    /// # Errors
    /// It is lent, perhaps, and the file does not say to whom: two programs must not compute for that.
    pub fn read(node: &Path) -> io::Result<Option<Self>> {
        match fs::read_to_string(node.join(LEASE)) {
            Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lends it.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, node: &Path) -> io::Result<()> {
        write_whole(&node.join(LEASE), &serde_json::to_string_pretty(self)?)
    }

    /// Takes it back.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn end(node: &Path) -> io::Result<()> {
        match fs::remove_file(node.join(LEASE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }
}

/// Takes every adopted model out of a store, readable or not.
///
/// # Errors
/// A folder cannot be removed.
pub fn forget_all(models: &Path) -> io::Result<()> {
    let entries = fs::read_dir(models).into_iter().flatten().filter_map(Result::ok);
    for entry in entries.filter(|entry| entry.path().join(ADOPTED).exists()) {
        fs::remove_dir_all(entry.path())?;
    }
    Ok(())
}

/// Every adopted model of a store.
pub fn all(models: &Path) -> Vec<(ModelName, Adopted)> {
    let entries = fs::read_dir(models).into_iter().flatten().filter_map(Result::ok);
    let mut all: Vec<(ModelName, Adopted)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().replace("--", "/");
            let adopted = Adopted::read(&entry.path())?.ok()?;
            Some((name.parse().ok()?, adopted))
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adopted(url: &str) -> Adopted {
        Adopted {
            url: url.into(),
            model: "org/there".into(),
            slots: 2,
            context: 4096,
            memory_bytes: 1 << 30,
            adopted_s: 7,
            key_file: None,
        }
    }

    #[test]
    fn an_adopted_model_is_one_of_the_store_and_takes_nobody_elses_name() -> io::Result<()> {
        let models = tempfile::tempdir()?;
        let name: ModelName = "my/model".parse().map_err(io::Error::other)?;
        let adopted = adopted("http://127.0.0.1:8080/v1");
        adopted.write(models.path(), &name)?;
        adopted.write(models.path(), &name)?;
        assert_eq!(all(models.path()), [(name.clone(), adopted.clone())]);
        let scanned = crate::store::scan(models.path());
        assert_eq!(scanned, [adopted.record(name)]);
        assert!(scanned[0].is_plausible() && scanned[0].digests.is_adopted());
        let own: ModelName = "own".parse().map_err(io::Error::other)?;
        fs::create_dir_all(models.path().join("own"))?;
        assert!(adopted.write(models.path(), &own).is_err());

        let mut other = adopted.clone();
        other.model = "org/other".into();
        assert!(
            other
                .write(models.path(), &"my/model".parse().map_err(io::Error::other)?)
                .is_err()
        );
        assert_eq!(GpuLease::read(models.path())?, None);
        let lease = GpuLease { server: adopted.url };
        lease.write(models.path())?;
        assert_eq!(GpuLease::read(models.path())?, Some(lease));
        fs::write(models.path().join(LEASE), "{")?;
        assert!(GpuLease::read(models.path()).is_err());
        GpuLease::end(models.path())?;
        GpuLease::end(models.path())
    }

    #[test]
    fn servers_are_on_this_machine() {
        for good in [
            "http://127.0.0.1:8080/v1",
            "http://localhost:1234/v1",
            "http://[::1]:8000/v1",
        ] {
            assert!(adopted(good).address().is_ok(), "{good}");
        }
        for bad in [
            "http://10.0.0.1:8080/v1",
            "https://127.0.0.1/v1",
            "file:///etc/passwd",
            "8080",
        ] {
            assert!(adopted(bad).address().is_err(), "{bad}");
        }
    }
}

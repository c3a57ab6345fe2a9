//! Remote endpoints: places that have a library and key servers, by name, in Apptainer's `remote.yaml`. The machine's
//! file comes first, the caller's own is what changes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use isles_registry::ClientOptions;
use isles_registry::web::{Web, Wish};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::keys::settings_folder;
use crate::text_file;

/// The machine's file.
pub const SYSTEM: &str = "/etc/apptainer/remote.yaml";
const LIMIT: u64 = 1 << 20;
/// The endpoint that there is without any settings, which serves no library.
const DEFAULT: &str = "DefaultRemote";
const DEFAULT_URI: &str = "cloud.apptainer.org";
const DEFAULT_SERVER: &str = "https://keys.openpgp.org";

/// All endpoints. What is not known is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remotes {
    #[serde(rename = "Active", skip_serializing_if = "String::is_empty")]
    pub active: String,
    #[serde(rename = "Remotes")]
    pub all: BTreeMap<String, Remote>,
    #[serde(rename = "Credentials", skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<Credential>,
    #[serde(flatten)]
    rest: Map<String, Value>,
    /// The file, where it is not the caller's usual one.
    #[serde(skip)]
    place: Option<PathBuf>,
}

/// A login at a key server, or at a registry, as versions before 1.3 kept it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Credential {
    #[serde(rename = "URI")]
    pub uri: String,
    /// What stands in the header `Authorization`.
    pub auth: String,
    pub insecure: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Remote {
    /// A host, and a path where there is one.
    #[serde(rename = "URI")]
    pub uri: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub token: String,
    /// From the machine's file.
    pub system: bool,
    pub exclusive: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keyservers: Vec<Keyserver>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Keyserver {
    #[serde(rename = "URI")]
    pub uri: String,
    /// It is there and not asked.
    pub skip: bool,
    pub external: bool,
    pub insecure: bool,
}

/// Where an endpoint has its services.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Services(BTreeMap<String, Service>);

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Service {
    uri: String,
}

impl Services {
    /// The URI of a service, such as `libraryAPI`.
    pub fn uri(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|service| service.uri.as_str()).filter(|uri| !uri.is_empty())
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .filter(|(_, service)| !service.uri.is_empty())
            .map(|(name, s)| (name.as_str(), s.uri.as_str()))
    }
}

fn own_path() -> Result<PathBuf, Failure> {
    Ok(settings_folder()?.join("remote.yaml"))
}

fn read(path: &Path) -> Result<Remotes, Failure> {
    let Some(text) = text_file::read(path, LIMIT, "cannot read")? else { return Ok(Remotes::default()) };
    // A file of comments only is none, and no error.
    let read = serde_yaml_ng::from_str::<Option<Remotes>>(&text)
        .map_err(|e| Failure::new(format!("cannot use {}: {e}", path.display())))?;
    Ok(read.unwrap_or_default())
}

impl Remotes {
    /// The machine's and the caller's, and the default one where there are none.
    pub fn load() -> Result<Remotes, Failure> {
        Remotes::load_with(None)
    }

    /// Those of one file alone, to change it.
    pub fn of_file(path: &Path) -> Result<Remotes, Failure> {
        Ok(Remotes { place: Some(path.to_owned()), ..read(path)? })
    }

    /// The same with another file than the caller's usual one.
    pub fn load_with(place: Option<&Path>) -> Result<Remotes, Failure> {
        let mut all = read(Path::new(SYSTEM))?;
        all.place = place.map(Path::to_owned);
        all.all.values_mut().for_each(|remote| remote.system = true);
        if all.all.is_empty() {
            let server = Keyserver { uri: DEFAULT_SERVER.to_owned(), external: true, ..Keyserver::default() };
            let remote = Remote {
                uri: DEFAULT_URI.to_owned(),
                system: true,
                keyservers: vec![server],
                ..Remote::default()
            };
            all.all.insert(DEFAULT.to_owned(), remote);
            DEFAULT.clone_into(&mut all.active);
        }
        let own = read(&all.path()?)?;
        for (name, remote) in own.all {
            // What the caller's file says of the machine's endpoints are logins and key servers.
            match all.all.get_mut(&name) {
                Some(known) => {
                    known.token = remote.token;
                    if !remote.keyservers.is_empty() {
                        known.keyservers = remote.keyservers;
                    }
                }
                // One that was the machine's is gone with it.
                None if remote.system => {}
                None => drop(all.all.insert(name, remote)),
            }
        }
        // Where the machine has one that is to be the only one, the caller has no choice.
        let only = all.all.iter().find(|(_, remote)| remote.system && remote.exclusive);
        if let Some((name, _)) = only {
            all.active.clone_from(name);
        } else if !own.active.is_empty() && all.all.contains_key(&own.active) {
            all.active = own.active;
        }
        all.credentials = own.credentials;
        all.rest = own.rest;
        Ok(all)
    }

    fn path(&self) -> Result<PathBuf, Failure> {
        self.place.clone().map_or_else(own_path, Ok)
    }

    /// The login at a server that is named by a URL.
    pub fn login(&self, uri: &str) -> Option<&str> {
        let plain = |uri: &str| uri.trim_end_matches('/').to_owned();
        let found = self.credentials.iter().find(|known| plain(&known.uri) == plain(uri));
        found.map(|known| known.auth.as_str()).filter(|auth| !auth.is_empty())
    }

    /// Replaces the file in one step: the caller's, for their eyes only, or the machine's, for everybody's.
    pub fn save(&self) -> Result<(), Failure> {
        let path = self.path()?;
        let failed = |e: io::Error| Failure::because(format!("cannot write {}", path.display()), &e);
        let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
        let public = path == Path::new(SYSTEM);
        let (file_mode, folder_mode) = if public { (0o644, 0o755) } else { (0o600, 0o700) };
        fs::DirBuilder::new().recursive(true).mode(folder_mode).create(&folder).map_err(failed)?;
        let text = serde_yaml_ng::to_string(self).map_err(|e| failed(io::Error::other(e)))?;
        let beside = folder.join(format!(".new-{}", isles_store::random_name()));
        let file = File::options().write(true).create_new(true).mode(file_mode).open(&beside);
        let written = file.and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_data()?;
            fs::rename(&beside, &path)
        });
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        written.map_err(failed)
    }

    /// An endpoint by name, or the one in use.
    pub fn chosen(&self, name: Option<&str>) -> Result<(&str, &Remote), Failure> {
        let wanted = name.unwrap_or(&self.active);
        let found = self.all.get_key_value(wanted).map(|(name, remote)| (name.as_str(), remote));
        found.ok_or_else(|| {
            let text = if wanted.is_empty() {
                "no default remote".to_owned()
            } else {
                format!("{wanted} is not a remote")
            };
            Failure::new(text).with_hint("`remote list` shows those that there are, `remote use` chooses one")
        })
    }
}

impl Remote {
    /// Asks the endpoint where its services are.
    pub fn services(&self) -> Result<Services, Failure> {
        let scheme = if self.insecure { "http" } else { "https" };
        let url = format!("{scheme}://{}/assets/config/config.prod.json", self.uri.trim_end_matches('/'));
        let answer = Web::new(&ClientOptions::default()).get(&url, Wish::default())?;
        let odd = |why: &str| Failure::new(format!("{} is no remote endpoint: {why}", self.uri));
        if answer.status != 200 {
            return Err(odd(&format!("the server answers {} to {url}", answer.status)));
        }
        let bytes = answer.bytes(LIMIT).map_err(|e| Failure::because(format!("cannot fetch {url}"), &e))?;
        let bytes = bytes.ok_or_else(|| odd("its answer is too large"))?;
        serde_json::from_slice(&bytes).map_err(|_| odd("its list of services is not understood"))
    }

    /// The key servers to ask, the first one first.
    pub fn keyservers(&self) -> Result<Vec<String>, Failure> {
        let named: Vec<String> = self.keyservers.iter().filter(|s| !s.skip).map(|s| s.uri.clone()).collect();
        if !named.is_empty() {
            return Ok(named);
        }
        let services = self.services()?;
        Ok(services.uri("keystoreAPI").map(str::to_owned).into_iter().collect())
    }
}

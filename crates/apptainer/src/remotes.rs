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

const SYSTEM: &str = "/etc/apptainer/remote.yaml";
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
    #[serde(flatten)]
    rest: Map<String, Value>,
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
    let failed = |e: io::Error| Failure::because(format!("cannot read {}", path.display()), &e);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Remotes::default()),
        Err(e) => return Err(failed(e)),
    };
    let bytes = isles_store::read_bounded(file, LIMIT).map_err(failed)?;
    let odd = |why: String| Failure::new(format!("cannot use {}: {why}", path.display()));
    let bytes = bytes.ok_or_else(|| odd("it is too large".to_owned()))?;
    let text = String::from_utf8(bytes).map_err(|_| odd("it is not UTF-8".to_owned()))?;
    // A file of comments only is none, and no error.
    let read = serde_yaml_ng::from_str::<Option<Remotes>>(&text).map_err(|e| odd(e.to_string()))?;
    Ok(read.unwrap_or_default())
}

impl Remotes {
    /// The machine's and the caller's, and the default one where there are none.
    pub fn load() -> Result<Remotes, Failure> {
        let mut all = read(Path::new(SYSTEM))?;
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
        let own = read(&own_path()?)?;
        for (name, remote) in own.all {
            // What the caller's file says of the machine's endpoints are logins and key servers.
            match all.all.get_mut(&name) {
                Some(known) => {
                    known.token = remote.token;
                    if !remote.keyservers.is_empty() {
                        known.keyservers = remote.keyservers;
                    }
                }
                None => drop(all.all.insert(name, Remote { system: false, ..remote })),
            }
        }
        if !own.active.is_empty() && all.all.contains_key(&own.active) {
            all.active = own.active;
        }
        all.rest = own.rest;
        Ok(all)
    }

    /// Replaces the caller's file in one step.
    pub fn save(&self) -> Result<(), Failure> {
        let path = own_path()?;
        let failed = |e: io::Error| Failure::because(format!("cannot write {}", path.display()), &e);
        let folder = settings_folder()?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
        let text = serde_yaml_ng::to_string(self).map_err(|e| failed(io::Error::other(e)))?;
        let beside = folder.join(format!(".new-{}", isles_store::random_name()));
        let file = File::options().write(true).create_new(true).mode(0o600).open(&beside);
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

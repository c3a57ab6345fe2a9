//! An image as a SIF file: its merged root file system as squashfs, and what it was made from beside it.

use std::fs::File;
use std::io::{BufReader, Seek};
use std::path::{Path, PathBuf};

use isles_crypt::luks::Strength;
use isles_crypt::{gocryptfs, luks};
use isles_sif::{
    Arch, Extra, FileSystem, INSPECTION, Inspection, Kind, Link, MessageFormat, MessageKind, NewObject,
    NewSif, OCI_CONFIG, Role, WrappingKey,
};
use isles_squashfs::{Options, Written};
use rustix::fs::{Mode, OFlags};

use super::tree::{Added, Overlaid};
use crate::error::At;
use crate::layer::to_json;
use crate::{Error, Image, Merged, Result, Store};

/// How the root file system of a SIF file is encrypted.
#[derive(Clone)]
pub struct Encryption {
    pub form: EncryptedForm,
    pub secret: Secret,
}

/// Who can open what is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncryptedForm {
    /// A container of LUKS2, which Apptainer and SingularityCE open for root or with a set-uid program.
    Luks,
    /// A file of gocryptfs, which Apptainer since 1.2 opens for everybody.
    Gocryptfs,
}

/// What opens it.
#[derive(Clone)]
pub enum Secret {
    Passphrase(Vec<u8>),
    /// A random one, and the message that has it for whoever has the RSA key.
    Wrapped {
        secret: Vec<u8>,
        message: String,
    },
}

impl Secret {
    /// A new one for whoever has the private key.
    pub fn wrapped(key: &WrappingKey) -> Result<Secret> {
        let failed = |source| Error::Crypt { object: "a SIF file".to_owned(), source };
        let secret = isles_crypt::random_passphrase().map_err(failed)?;
        let message = key.wrap(&secret).ok_or_else(|| failed(isles_crypt::Error::Random))?;
        Ok(Secret::Wrapped { secret, message })
    }
}

impl std::fmt::Debug for Encryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Encryption as {:?}", self.form)
    }
}

/// What a SIF file has beyond the image.
#[derive(Debug, Clone)]
pub struct NewSifImage<'a> {
    /// What is put over the root file system, by absolute paths.
    pub added: &'a [(String, Added)],
    /// The definition file, or what stands for it.
    pub definition: &'a str,
    /// How its file system is written; its times are those of `latest`.
    pub squashfs: Options,
    /// Files changed later say that they were changed then, and so does what is added (`SOURCE_DATE_EPOCH`).
    pub latest: Option<i64>,
    /// The identity of the file; all zeros for none.
    pub uuid: [u8; 16],
    /// Two files that are encrypted are never the same.
    pub encryption: Option<&'a Encryption>,
}

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SifMade {
    /// Bytes of the root file system in the file.
    pub root: u64,
    pub files: u32,
}

impl Store {
    /// Makes a SIF file at `path`, in place of what may be there.
    pub fn export_sif(&self, image: &Image, new: &NewSifImage<'_>, path: &Path) -> Result<SifMade> {
        let platform = image.config.platform();
        let arch = Arch::from_name(&platform.architecture).ok_or_else(|| Error::Unsupported {
            object: "a SIF file".to_owned(),
            what: format!("the architecture {}", platform.architecture),
        })?;
        let merged = Merged::open(&self.layers_of(image)?, self.ownership())?;
        let mut tree = Overlaid::new(&merged, new.added, new.latest.unwrap_or(0));
        let inspection = Inspection::of(&tree).to_json();
        let config = to_json(&image.config.config)?;
        let (root, written) = squashed(&mut tree, new, path)?;
        let mut objects = vec![
            NewObject::new(Kind::Definition, new.definition.as_bytes()),
            NewObject::json(INSPECTION, inspection.as_slice()),
            NewObject::json(OCI_CONFIG, config.as_slice()),
        ];
        let number = objects.len() as u32 + 1;
        objects.push(match new.encryption {
            Some(encryption) => encrypted(encryption, root, written.bytes, arch, new.latest, path)?,
            None => NewObject::partition(FileSystem::Squashfs, Role::Primary, arch, buffered(root)),
        });
        if let Some(Encryption { secret: Secret::Wrapped { message, .. }, .. }) = new.encryption {
            let (format, kind) = (MessageFormat::Pem, MessageKind::RsaOaep);
            let message = NewObject::new(Kind::CryptoMessage, message.as_bytes());
            let link = Link::Object(number);
            objects.push(NewObject { link, extra: Extra::CryptoMessage { format, kind }, ..message });
        }
        NewSif { uuid: new.uuid, ..NewSif::new(objects) }.create(path)?;
        Ok(SifMade { root: written.bytes, files: written.inodes })
    }
}

fn buffered(file: File) -> BufReader<File> {
    BufReader::with_capacity(1 << 20, file)
}

/// The partition with a squashfs image of `bytes` bytes, encrypted.
fn encrypted(
    encryption: &Encryption,
    root: File,
    bytes: u64,
    arch: Arch,
    latest: Option<i64>,
    path: &Path,
) -> Result<NewObject<'static>> {
    let failed = |source| Error::Crypt { object: path.display().to_string(), source };
    let (key, strength) = match &encryption.secret {
        Secret::Passphrase(passphrase) => (passphrase, Strength::Passphrase),
        Secret::Wrapped { secret, .. } => (secret, Strength::Random),
    };
    Ok(match encryption.form {
        EncryptedForm::Luks => {
            let encrypted = luks::encrypt(buffered(root), key, strength).map_err(failed)?;
            NewObject::partition(FileSystem::EncryptedSquashfs, Role::Primary, arch, encrypted)
        }
        EncryptedForm::Gocryptfs => {
            let time = latest.unwrap_or(0);
            let mut files = gocryptfs::encrypt(buffered(root), bytes, key, strength, time).map_err(failed)?;
            let mut around = unnamed_beside(path)?;
            isles_squashfs::write(&mut files, &mut around, &gocryptfs::around())
                .map_err(|source| Error::Squashfs { object: path.display().to_string(), source })?;
            around.rewind().at("read", path)?;
            NewObject::partition(FileSystem::GocryptfsSquashfs, Role::Primary, arch, buffered(around))
        }
    })
}

/// The tree as a squashfs image, in a file without a name beside `path` that stands at its beginning.
pub(super) fn squashed(
    tree: &mut Overlaid<'_>,
    new: &NewSifImage<'_>,
    path: &Path,
) -> Result<(File, Written)> {
    let latest = new.latest.map(|latest| u32::try_from(latest.max(0)).unwrap_or(u32::MAX));
    let options = Options { latest, made: latest.unwrap_or(0), ..new.squashfs.clone() };
    let mut file = unnamed_beside(path)?;
    let written = isles_squashfs::write(tree, &mut file, &options)
        .map_err(|source| Error::Squashfs { object: path.display().to_string(), source })?;
    file.rewind().at("read", path)?;
    Ok((file, written))
}

/// A file without a name on the file system where `path` will be: it is gone with this process.
fn unnamed_beside(path: &Path) -> Result<File> {
    let parent =
        path.parent().filter(|p| !p.as_os_str().is_empty()).map_or(PathBuf::from("."), Path::to_owned);
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open(&parent, flags, Mode::RUSR | Mode::WUSR) {
        return Ok(File::from(file));
    }
    // Some file systems, NFS among them, have no such files.
    let named = parent.join(format!(".new-{}", crate::random_name()));
    let file = File::options().read(true).write(true).create_new(true).open(&named).at("create", &named)?;
    std::fs::remove_file(&named).at("remove", &named)?;
    Ok(file)
}

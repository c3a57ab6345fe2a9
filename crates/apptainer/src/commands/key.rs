//! `apptainer key …`: the keys that images are signed and verified with.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use isles_openpgp::{Certificate, LIMIT};
use isles_registry::{ClientOptions, KeyServer};

use crate::ask;
use crate::columns::{aligned, time};
use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;
use crate::keys::{Keys, Part, listed, name_of};
use crate::remotes::Remotes;

pub static URL: Flag = Flag::text("url", "url", "the key server").short('u').env(&["URL"]);
pub static KEYSDIR: Flag = Flag::text("keysdir", "folder", "where the keys are (default ~/.apptainer/keys)")
    .short('d')
    .env(&["KEYSDIR"]);
static GLOBAL: Flag = Flag::switch("global", "the keys of the machine, which everybody trusts").short('g');
static NAME: Flag = Flag::text("name", "name", "the owner's name").short('N');
static EMAIL: Flag = Flag::text("email", "address", "the owner's address").short('E');
static COMMENT: Flag = Flag::text("comment", "text", "a comment").short('C');
static PASSWORD: Flag =
    Flag::text("password", "passphrase", "the passphrase; none where it is empty").short('P');
static PUSH: Flag = Flag::switch("push", "send the public key to the key server").short('U');
static BITS: Flag =
    Flag::number("bit-length", "make an RSA key of so many bits, 2048 to 4096, in place of Ed25519")
        .short('b');
static SECRET: Flag =
    Flag::switch("secret", "secret keys instead of public ones").short('s').env(&["SECRET"]);
static SECRET_ONE: Flag = Flag::switch("secret", "the secret key instead of the public one").short('s');
static PUBLIC: Flag = Flag::switch("public", "the public key only").short('p');
static BOTH: Flag = Flag::switch("both", "the public key and the secret one").short('b');
static ARMOR: Flag = Flag::switch("armor", "as text").short('a');
static NEW_PASSWORD: Flag = Flag::switch("new-password", "lock secret keys with another passphrase");
static LONG: Flag = Flag::switch("long-list", "say more about each key").short('l');

pub static COMMAND: Command = Command {
    usage: "key",
    short: "Manage OpenPGP keys",
    long: "Keys are in ~/.apptainer/keys: pgp-public is whom the caller trusts, pgp-secret what they sign with.",
    aliases: &["keys"],
    commands: &[&EXPORT, &IMPORT, &LIST, &NEWPAIR, &PULL, &PUSH_COMMAND, &REMOVE, &SEARCH],
    ..Command::EMPTY
};

static NEWPAIR: Command = Command {
    usage: "newpair",
    short: "Make a new pair of keys",
    long: "Keys are Ed25519, or RSA with --bit-length, as Apptainer's are. What is not given by flags is asked for.",
    examples: "apptainer key newpair\napptainer key newpair --name Ada --email ada@example.org --comment '' --password ''",
    flags: &[&[&BITS, &COMMENT, &EMAIL, &KEYSDIR, &NAME, &PASSWORD, &PUSH, &URL]],
    arity: Arity::Exactly(0),
    run: newpair,
    ..Command::EMPTY
};

static LIST: Command = Command {
    usage: "list",
    short: "List keys",
    examples: "apptainer key list\napptainer key list --secret",
    flags: &[&[&GLOBAL, &KEYSDIR, &SECRET]],
    arity: Arity::Exactly(0),
    run: |cx| {
        let (keys, is_secret) = (keyring(cx)?, cx.values.is(&SECRET));
        let part = if is_secret { Part::Secret } else { Part::Public };
        let kind = if is_secret { "Private" } else { "Public" };
        let all = keys.all(part)?;
        cx.print(format!("{kind} key listing ({}):\n\n{}", keys.path(part).display(), listed(&all)))?;
        Ok(0)
    },
    ..Command::EMPTY
};

static IMPORT: Command = Command {
    usage: "import [import options...] <input-key>",
    short: "Take keys from a file into the keyring",
    examples: "apptainer key import ./my-key.asc",
    flags: &[&[&GLOBAL, &KEYSDIR, &NEW_PASSWORD]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run: |cx| import(cx).map_err(|e| super::sign::prefixed("key import command failed", e).with_code(2)),
    ..Command::EMPTY
};

static EXPORT: Command = Command {
    usage: "export [export options...] <output-key>",
    short: "Write a key of the keyring into a file",
    examples: "apptainer key export --armor ./my-key.asc",
    flags: &[&[&ARMOR, &GLOBAL, &KEYSDIR, &SECRET_ONE]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run: |cx| export(cx).map_err(|e| super::sign::prefixed("key export command failed", e).with_code(10)),
    ..Command::EMPTY
};

static REMOVE: Command = Command {
    usage: "remove [remove options...] <fingerprint>",
    short: "Remove a key from the keyring",
    examples: "apptainer key remove 8883491F4268F173C6E5DC49EDECE4F3F38D871E",
    flags: &[&[&BOTH, &GLOBAL, &KEYSDIR, &PUBLIC, &SECRET_ONE]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run: remove,
    ..Command::EMPTY
};

static SEARCH: Command = Command {
    usage: "search [search options...] <search-string>",
    short: "Look for keys on a key server",
    examples: "apptainer key search ada@example.org",
    flags: &[&[&LONG, &URL]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run: |cx| search(cx).map_err(|e| super::sign::prefixed("search failed", e).with_code(2)),
    ..Command::EMPTY
};

static PULL: Command = Command {
    usage: "pull [pull options...] <fingerprint>",
    short: "Fetch a key from a key server",
    examples: "apptainer key pull 8883491F4268F173C6E5DC49EDECE4F3F38D871E",
    flags: &[&[&GLOBAL, &KEYSDIR, &URL]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run: |cx| pull(cx).map_err(|e| super::sign::prefixed("pull failed", e).with_code(2)),
    ..Command::EMPTY
};

static PUSH_COMMAND: Command = Command {
    usage: "push [push options...] <fingerprint>",
    short: "Send a key to a key server",
    examples: "apptainer key push 8883491F4268F173C6E5DC49EDECE4F3F38D871E",
    flags: &[&[&GLOBAL, &KEYSDIR, &URL]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run: |cx| push(cx).map_err(|e| super::sign::prefixed("push failed", e).with_code(2)),
    ..Command::EMPTY
};

/// The keyring that the flags choose.
fn keyring(cx: &Context<'_>) -> Result<Keys, Failure> {
    if cx.values.is(&GLOBAL) { Ok(Keys::global()) } else { Keys::own(cx.values.word(&KEYSDIR)) }
}

/// The key server that the flags, or else the settings of the endpoint in use, choose.
fn server(cx: &Context<'_>) -> Result<String, Failure> {
    if let Some(url) = cx.values.word(&URL) {
        return Ok(url.to_owned());
    }
    let remotes = Remotes::load()?;
    let (name, remote) = remotes.chosen(None)?;
    let none =
        || Failure::new(format!("the endpoint {name} has no key server")).with_hint("name one with --url");
    remote.keyservers()?.into_iter().next().ok_or_else(none)
}

/// The key server to ask, with the login that is kept for it.
pub fn connect(cx: &Context<'_>) -> Result<KeyServer, Failure> {
    let uri = server(cx)?;
    let key_server = KeyServer::new(&ClientOptions::default(), &uri)?;
    match Remotes::load()?.login(&uri) {
        Some(auth) => Ok(key_server.with_authorization(auth)?),
        None => Ok(key_server),
    }
}

fn newpair(cx: &Context<'_>) -> Result<u8, Failure> {
    let bits = cx.values.number(&BITS).map(|bits| u32::try_from(bits).unwrap_or(0));
    let asked = |flag: &Flag, question: &str| match cx.values.text(flag) {
        Some(text) => Ok(text.to_owned()),
        None => ask::line(question),
    };
    let name = asked(&NAME, "Enter your name (e.g., John Doe) : ")?;
    let email = asked(&EMAIL, "Enter your email address (e.g., john.doe@example.com) : ")?;
    let comment = asked(&COMMENT, "Enter optional comment (e.g., development keys) : ")?;
    let odd = [&name, &email, &comment].iter().any(|text| text.contains(['(', ')', '<', '>', '\0', '\n']));
    if odd || name.is_empty() && email.is_empty() {
        return Err(Failure::new("a key needs a name or an address, without brackets").with_code(2));
    }
    let passphrase = match cx.values.text(&PASSWORD) {
        Some(passphrase) => passphrase.to_owned(),
        None => {
            let passphrase = ask::new_secret("Enter a passphrase : ")?;
            let warning = "WARNING: if there is no password set, your key is not secure. Do you want to continue? [y/n] ";
            if passphrase.is_empty() && !ask::yes(warning)? {
                return Err(Failure::new("could not collect user input: empty passphrase").with_code(2));
            }
            passphrase
        }
    };
    let mut user = name;
    for (part, open, close) in [(&comment, "(", ")"), (&email, "<", ">")] {
        if !part.is_empty() {
            let space = if user.is_empty() { "" } else { " " };
            user.push_str(&format!("{space}{open}{part}{close}"));
        }
    }
    let keys = Keys::own(cx.values.word(&KEYSDIR))?;
    cx.print("Generating Entity and OpenPGP Key Pair... ")?;
    let locked = Some(passphrase.as_str()).filter(|passphrase| !passphrase.is_empty());
    let key = match bits {
        None => Certificate::generate(&user, locked, super::now()),
        Some(bits) => Certificate::generate_rsa(bits, &user, locked, super::now()),
    };
    let key = key.map_err(|e| Failure::because("creating newpair failed", &e).with_code(2))?;
    keys.add(Part::Secret, &key)?;
    keys.add(Part::Public, &key.to_public())?;
    cx.print("done\n")?;
    if cx.values.is(&PUSH) {
        match connect(cx)?.add(&key.to_public().to_text()) {
            Ok(_) => cx.print("Key successfully pushed to keystore\n")?,
            Err(e) => {
                let why = Failure::from(e).line();
                cx.print(format!("Failed to push newly created key to keystore: {why}\n"))?;
            }
        }
    }
    Ok(0)
}

fn import(cx: &Context<'_>) -> Result<u8, Failure> {
    let path = &cx.arguments[0];
    let failed = |e: io::Error| Failure::because(format!("cannot read {path}"), &e);
    let input: Box<dyn Read> = match path.as_str() {
        "-" => Box::new(io::stdin()),
        path => Box::new(fs::File::open(path).map_err(failed)?),
    };
    let bytes = isles_store::read_bounded(input, LIMIT as u64).map_err(failed)?;
    let bytes = bytes.ok_or_else(|| Failure::new(format!("{path} is too large for a keyring")))?;
    let all = Certificate::read(&bytes);
    let all = all.map_err(|e| Failure::because(format!("unable to get entity from: {path}"), &e))?;
    if all.is_empty() {
        return Err(Failure::new(format!("unable to get entity from: {path}: it holds no key")));
    }
    let keys = keyring(cx)?;
    let exists = |key| {
        Failure::new(format!("the key with fingerprint {} already belongs to the keyring", name_of(key)))
    };
    for key in &all {
        if key.is_secret() {
            let old = if key.is_locked() { Some(ask::secret("Enter your key password : ")?) } else { None };
            let new = match cx.values.is(&NEW_PASSWORD) {
                true => {
                    Some(ask::new_secret("Enter a new password for this key : ")?).filter(|p| !p.is_empty())
                }
                false => old.clone(),
            };
            let locked = key.relock(old.as_deref(), new.as_deref());
            let locked = locked.map_err(|e| Failure::because("cannot open the private key", &e))?;
            if !keys.add(Part::Secret, &locked)? {
                return Err(exists(key));
            }
            cx.print(format!(
                "Key with fingerprint {} successfully added to the private keyring\n",
                name_of(key)
            ))?;
        }
        if !keys.add(Part::Public, &key.to_public())? {
            return Err(exists(key));
        }
        cx.print(format!(
            "Key with fingerprint {} successfully added to the public keyring\n",
            name_of(key)
        ))?;
    }
    Ok(0)
}

fn export(cx: &Context<'_>) -> Result<u8, Failure> {
    let path = &cx.arguments[0];
    let (part, kind) = match cx.values.is(&SECRET_ONE) {
        true => (Part::Secret, "private"),
        false => (Part::Public, "public"),
    };
    let all = keyring(cx)?.all(part)?;
    if all.is_empty() {
        return Err(Failure::new("keyring is empty"));
    }
    cx.print(listed(&all))?;
    let key = &all[ask::number(&format!("Enter # of {kind} key to use : "), all.len())?];
    if key.is_locked() {
        let passphrase = ask::secret("Enter key passphrase : ")?;
        key.open(Some(&passphrase)).map_err(|e| Failure::because("cannot open the private key", &e))?;
    }
    let bytes = if cx.values.is(&ARMOR) { key.to_text().into_bytes() } else { key.to_bytes() };
    write(Path::new(path), &bytes, part)?;
    let kind = if part == Part::Secret { "Private" } else { "Public" };
    let fingerprint = name_of(key);
    cx.print(format!("{kind} key with fingerprint {fingerprint} correctly exported to file: {path}\n"))?;
    Ok(0)
}

/// A secret key is for nobody else's eyes.
fn write(path: &Path, bytes: &[u8], part: Part) -> Result<(), Failure> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mode = if part == Part::Secret { 0o600 } else { 0o644 };
    let file = fs::File::options().write(true).create(true).truncate(true).mode(mode).open(path);
    let written = file.and_then(|mut file| file.write_all(bytes));
    written.map_err(|e| Failure::because(format!("cannot write {}", path.display()), &e))
}

fn remove(cx: &Context<'_>) -> Result<u8, Failure> {
    let (keys, name) = (keyring(cx)?, &cx.arguments[0]);
    let both = cx.values.is(&BOTH) || cx.values.is(&PUBLIC) && cx.values.is(&SECRET_ONE);
    let none = "no key matching given fingerprint found";
    if both {
        let public = keys.remove(Part::Public, name)?;
        let secret = keys.remove(Part::Secret, name)?;
        if !public && !secret {
            let text = format!("Unable to remove neither public key: {none}, nor private key: {none}");
            return Err(Failure::new(text));
        }
        return Ok(0);
    }
    let (part, kind) = match cx.values.is(&SECRET_ONE) {
        true => (Part::Secret, "private"),
        false => (Part::Public, "public"),
    };
    match keys.remove(part, name)? {
        true => Ok(0),
        false => Err(Failure::new(format!("Unable to remove {kind} key: {none}"))
            .with_hint("`key list` shows fingerprints; all 40 digits are needed")),
    }
}

fn pull(cx: &Context<'_>) -> Result<u8, Failure> {
    let wanted = cx.arguments[0].trim_start_matches("0x");
    let is_hex = wanted.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_hex || !matches!(wanted.len(), 8 | 16 | 40) {
        return Err(Failure::new(format!("'{wanted}' is no fingerprint")).with_hint(
            "a fingerprint has 40 hexadecimal digits, and the last 16 of it are the ID of the key",
        ));
    }
    let found = connect(cx)?.get(wanted)?;
    let none = || Failure::new("unable to pull key from server: no matching keys found for fingerprint");
    let found = Certificate::read(&found.ok_or_else(none)?);
    let mut found = found.map_err(|e| Failure::because("the key server's answer is no key", &e))?;
    found.retain(|key| name_of(key).ends_with(&wanted.to_ascii_uppercase()) || has_subkey(key, wanted));
    let [key] = found.as_slice() else {
        let text = "unable to pull key from server: server returned more than one key for unique fingerprint";
        return Err(if found.is_empty() { none() } else { Failure::new(text) });
    };
    let keys = keyring(cx)?;
    let count = usize::from(keys.add(Part::Public, &key.to_public())?);
    let path = keys.path(Part::Public);
    cx.print(format!("{count} key(s) added to keyring of trust {}\n", path.display()))?;
    Ok(0)
}

fn has_subkey(certificate: &Certificate, id: &str) -> bool {
    let keys = certificate.keys().unwrap_or_default();
    keys.iter().any(|key| isles_sif::fingerprint_text(&key.fingerprint).ends_with(&id.to_ascii_uppercase()))
}

fn push(cx: &Context<'_>) -> Result<u8, Failure> {
    let wanted = &cx.arguments[0];
    if !matches!(wanted.len(), 16 | 40) {
        return Err(Failure::new("please provide a keyid(16 chars) or a full fingerprint(40 chars)"));
    }
    let all = keyring(cx)?.all(Part::Public)?;
    let key = all.iter().find(|key| name_of(key).ends_with(&wanted.to_ascii_uppercase()));
    let key = key.ok_or_else(|| {
        Failure::new("could not find the requested key").with_hint("`key list` shows the keys that are here")
    })?;
    let said = connect(cx)?.add(&key.to_text())?;
    if !said.is_empty() {
        let said = said.chars().filter(|c| !c.is_control() || matches!(c, '\t' | '\n'));
        cx.talk.info(&format!("Key server response: {}", said.collect::<String>()));
    }
    cx.print(format!("public key `{wanted}' pushed to server successfully\n"))?;
    Ok(0)
}

fn search(cx: &Context<'_>) -> Result<u8, Failure> {
    let text = &cx.arguments[0];
    let is_fingerprint = text.len() >= 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    let text = if is_fingerprint { format!("0x{text}") } else { text.clone() };
    let list = connect(cx)?.index(&text)?;
    let list = list.ok_or_else(|| Failure::new("no matching keys found for fingerprint"))?;
    let (count, table) = found(&list, cx.values.is(&LONG));
    cx.print(format!("Showing {count} results\n\n{table}"))?;
    Ok(0)
}

/// A key server's list as a table, and how many keys are in it.
fn found(list: &str, long: bool) -> (usize, String) {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let (head, blank) = match long {
        true => (
            words(&[
                "FINGERPRINT",
                "ALGORITHM",
                "BITS",
                "CREATION DATE",
                "EXPIRATION DATE",
                "STATUS",
                "NAME/EMAIL",
            ]),
            6,
        ),
        false => (words(&["KEY ID", "BITS", "NAME/EMAIL"]), 2),
    };
    let mut lines = vec![head];
    let mut count = 0;
    let mut is_named = true;
    for line in list.lines() {
        let line = line.replace(char::is_control, "");
        let fields: Vec<&str> = line.trim().split(':').collect();
        let field = |n: usize| fields.get(n).copied().unwrap_or_default();
        match field(0) {
            "pub" => {
                if count > 0 {
                    lines.push(Vec::new());
                }
                count += 1;
                let id = field(1);
                lines.push(match long {
                    true => words(&[
                        id,
                        algorithm(field(2)),
                        field(3),
                        &date(field(4)),
                        &date(field(5)),
                        status(field(6)),
                    ]),
                    false => words(&[short(id), field(3)]),
                });
                is_named = false;
            }
            "uid" if count > 0 => {
                if is_named {
                    lines.push(vec![String::new(); blank]);
                }
                is_named = true;
                if let Some(last) = lines.last_mut() {
                    last.push(unescaped(field(1)));
                }
            }
            _ => {}
        }
    }
    (count, aligned(&lines, 2))
}

/// The last eight digits of an ID.
fn short(id: &str) -> &str {
    id.char_indices().rev().nth(7).map_or(id, |(at, _)| &id[at..])
}

fn algorithm(number: &str) -> &'static str {
    match number {
        "1" | "2" | "3" => "RSA",
        "16" => "Elgamal",
        "17" => "DSA",
        "18" => "Elliptic Curve",
        "19" => "ECDSA",
        "22" | "27" => "EdDSA",
        _ => "unknown",
    }
}

fn date(seconds: &str) -> String {
    seconds.parse().map_or_else(|_| seconds.to_owned(), time)
}

fn status(flags: &str) -> &'static str {
    [('r', "[revoked]"), ('d', "[disabled]"), ('e', "[expired]")]
        .iter()
        .find(|(flag, _)| flags.contains(*flag))
        .map_or("[enabled]", |(_, text)| text)
}

/// What a server has written with `%` and `+`; control characters are left out.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => (bytes.push(byte), rest = &after[2..]).1,
            None => (bytes.push(if *first == b'+' { b' ' } else { *first }), rest = after).1,
        }
    }
    String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_servers() {
        let list = "info:1:2\n\
            pub:0123456789ABCDEF0123456789ABCDEF01234567:22:256:1593475316::\n\
            uid:Ada%20%3Cada%40example.org%3E:1593475316::\n\
            uid:Other+name:::\n\
            pub:AAAA:1:4096:::r\n";
        assert_eq!(
            found(list, false),
            (
                2,
                "KEY ID    BITS  NAME/EMAIL\n01234567  256   Ada <ada@example.org>\n                Other name\n\n\
                 AAAA      4096\n"
                    .to_owned()
            )
        );
        let (_, long) = found(list, true);
        assert!(long.contains("EdDSA      256   2020-06-30 00:01:56 +0000 UTC"), "{long}");
        assert!(long.contains("[revoked]"), "{long}");
        assert_eq!(found("what", true).0, 0);
        for is_long in [false, true] {
            let (count, text) = found("pub:ä1234567ü89:1:4\x1b[2J096:\x07x:y\x1b:r\nuid:%1b[2JMe", is_long);
            assert_eq!(count, 1);
            assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        }
        assert_eq!(unescaped("%zz%4"), "%zz%4");
    }
}

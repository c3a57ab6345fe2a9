//! What we make GnuPG believes, and the other way round. Without `gpg` these tests say so and pass.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use isles_openpgp::{Certificate, Error, Verdict, cleartext};

const NOW: u64 = 1_700_000_000;

struct Gnupg {
    home: tempfile::TempDir,
}

impl Gnupg {
    fn new() -> Option<Gnupg> {
        if Command::new("gpg").arg("--version").output().is_err() {
            println!("skip: no gpg");
            return None;
        }
        // The path of the agent's socket has a bound of its own.
        let home = tempfile::Builder::new().prefix("g").tempdir_in("/tmp").unwrap();
        // Otherwise it hashes passphrases for as long as it takes on this machine to take long.
        fs::write(home.path().join("gpg-agent.conf"), "s2k-count 65536\n").unwrap();
        Some(Gnupg { home })
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new("gpg")
            .arg("--homedir")
            .arg(self.home.path())
            .args(["--batch", "--yes", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", "secret"])
            .args(arguments)
            .output()
            .unwrap()
    }

    fn good(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn path(&self, name: &str) -> String {
        self.home.path().join(name).display().to_string()
    }
}

impl Drop for Gnupg {
    fn drop(&mut self) {
        let _ =
            Command::new("gpgconf").arg("--homedir").arg(self.home.path()).args(["--kill", "all"]).output();
    }
}

#[test]
fn gnupg_imports_our_keys_and_verifies_what_we_sign() {
    let Some(gnupg) = Gnupg::new() else { return };
    // Lengths differ a little from key to key. Those that need no filling up in base64 are the ones that GnuPG 2.2 reads
    // beyond their end, if they have no checksum.
    let unfilled = |key: &Certificate| !key.to_text().contains("=\n");
    let ours = (0..)
        .map(|n| {
            let name = format!("Isle Dweller (tests){} <isle@example.org>", ".".repeat(n % 3));
            Certificate::generate(&name, Some("secret"), NOW).unwrap()
        })
        .find(unfilled)
        .unwrap();
    let name = ours.users().next().unwrap().to_owned();
    let fingerprint = ours.fingerprint().map(|b| format!("{b:02X}")).concat();
    fs::write(gnupg.path("public.asc"), ours.to_public().to_text()).unwrap();
    gnupg.good(&["--import", &gnupg.path("public.asc")]);
    let listed = String::from_utf8(gnupg.good(&["--with-colons", "--list-keys"])).unwrap();
    assert!(listed.contains(&fingerprint) && listed.contains(&name), "{listed}");

    let text = "{\"version\":1}\n- a dash\nlast";
    let key = ours.open(Some("secret")).unwrap();
    // A signature has no checksum, as in SIF files, so GnuPG 2.2 reads only those that are filled up.
    let signed = (1..).map(|n| key.clear_sign(text, NOW + n)).find(|signed| signed.contains("=\n")).unwrap();
    fs::write(gnupg.path("signed"), &signed).unwrap();
    let status =
        String::from_utf8(gnupg.good(&["--status-fd", "1", "--verify", &gnupg.path("signed")])).unwrap();
    assert!(status.contains(&format!("VALIDSIG {fingerprint}")), "{status}");
    fs::write(gnupg.path("changed"), signed.replace("version", "Version")).unwrap();
    assert!(!gnupg.run(&["--verify", &gnupg.path("changed")]).status.success());

    // The secret key too, with its passphrase.
    let other = Gnupg::new().unwrap();
    fs::write(other.path("secret.asc"), ours.to_text()).unwrap();
    other.good(&["--import", &other.path("secret.asc")]);
    fs::write(other.path("text"), "words\n").unwrap();
    let theirs = other.good(&["--output", "-", "--clearsign", &other.path("text")]);
    let parsed = cleartext::parse(&theirs).unwrap();
    let verdict = parsed.signatures[0].verify(&ours.keys().unwrap(), &parsed.canonical, u64::MAX);
    assert_eq!(verdict, Verdict::Good);
}

#[test]
fn gnupg_takes_our_rsa_keys() {
    assert!(Certificate::generate_rsa(1024, "A", None, NOW).unwrap_err().to_string().contains("1024 bits"));
    assert!(Certificate::generate_rsa(2050, "A", None, NOW).is_err());
    let Some(gnupg) = Gnupg::new() else { return };
    for bits in [2048, 3072] {
        let ours = Certificate::generate_rsa(bits, "Isle <isle@example.org>", Some("secret"), NOW).unwrap();
        let fingerprint = ours.fingerprint().map(|b| format!("{b:02X}")).concat();
        let name = format!("secret-{bits}.asc");
        fs::write(gnupg.path(&name), ours.to_text()).unwrap();
        gnupg.good(&["--import", &gnupg.path(&name)]);
        let listed = String::from_utf8(gnupg.good(&["--with-colons", "--list-keys"])).unwrap();
        assert!(listed.contains(&fingerprint) && listed.contains(&format!(":{bits}:1:")), "{listed}");
        let key = ours.open(Some("secret")).unwrap();
        let text = "words\n";
        fs::write(gnupg.path("signed"), key.clear_sign(text, NOW + 1)).unwrap();
        // Behind a signature that is not filled up GnuPG 2.2 reads on, as above, and complains of that when it has found it good.
        let said = gnupg.run(&["--status-fd", "1", "--verify", &gnupg.path("signed")]);
        let status = String::from_utf8(said.stdout).unwrap();
        assert!(status.contains(&format!("VALIDSIG {fingerprint}")), "{status}");
        // It signs with it as well, so it has found no fault in any of its numbers.
        fs::write(gnupg.path("text"), text).unwrap();
        let theirs = gnupg.good(&["-u", &fingerprint, "--output", "-", "--clearsign", &gnupg.path("text")]);
        let parsed = cleartext::parse(&theirs).unwrap();
        let verdict = parsed.signatures[0].verify(&ours.keys().unwrap(), &parsed.canonical, u64::MAX);
        assert_eq!(verdict, Verdict::Good);
    }
}

#[test]
fn we_read_its_keys_and_verify_what_it_signed() {
    for algorithm in ["rsa2048", "ed25519"] {
        let Some(gnupg) = Gnupg::new() else { return };
        if algorithm == "rsa2048" {
            // Made by it once, since it takes its time for that; locked with the same passphrase.
            gnupg.good(&["--import", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/rsa2048-secret.asc")]);
        } else {
            gnupg.good(&["--quick-generate-key", "Ada <ada@example.org>", algorithm, "sign", "never"]);
        }
        let secret = gnupg.good(&["--armor", "--export-secret-keys", "ada@example.org"]);
        fs::write(gnupg.path("text"), "one\n- two \nthree\n").unwrap();
        let signed = gnupg.good(&["--output", "-", "--clearsign", &gnupg.path("text")]);

        let all = Certificate::read(&secret).unwrap();
        assert_eq!(all.len(), 1);
        let theirs = &all[0];
        assert_eq!(theirs.users().collect::<Vec<_>>(), ["Ada <ada@example.org>"]);
        assert_eq!(theirs.bits(), if algorithm == "rsa2048" { 2048 } else { 256 });
        let parsed = cleartext::parse(&signed).unwrap();
        assert!(parsed.signatures[0].is_by(theirs));
        let keys = theirs.keys().unwrap();
        let verdict = parsed.signatures[0].verify(&keys, &parsed.canonical, u64::MAX);
        assert_eq!(verdict, Verdict::Good, "{algorithm}");

        assert!(theirs.is_locked());
        assert!(matches!(theirs.open(Some("wrong")), Err(Error::WrongPassphrase)));
        assert!(matches!(theirs.open(None), Err(Error::Locked)));
        let now = theirs.created() + 1;
        let ours = theirs.open(Some("secret")).unwrap().clear_sign("by us", now);
        check(&gnupg, Path::new(&gnupg.path("ours")), &ours);

        // Locked anew, it is the same key.
        let again = theirs.relock(Some("secret"), Some("other")).unwrap();
        assert_eq!(again.fingerprint(), theirs.fingerprint());
        assert_eq!(again.open(Some("other")).unwrap().clear_sign("by us", now), ours);
        let open = again.relock(Some("other"), None).unwrap();
        assert!(!open.is_locked());
        open.open(None).unwrap();
    }
}

fn check(gnupg: &Gnupg, path: &Path, message: &str) {
    fs::write(path, message).unwrap();
    gnupg.good(&["--verify", &path.display().to_string()]);
}

/// `ISLES_FUZZ` is how many are tried (1,600 where it is not set).
#[test]
fn changed_keys_and_messages_do_no_harm() {
    let ours = Certificate::generate("A <a@example.org>", Some("secret"), NOW).unwrap();
    let signed = ours.open(Some("secret")).unwrap().clear_sign("text", NOW).into_bytes();
    let keys = ours.keys().unwrap();
    let rounds: usize = std::env::var("ISLES_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(1600);
    let mut state = 88_172_645_463_325_252_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for good in [ours.to_bytes(), ours.to_text().into_bytes(), ours.to_public().to_bytes(), signed] {
        for _ in 0..rounds.div_ceil(4) {
            let mut bytes = good.clone();
            let at = random() % bytes.len();
            bytes[at] = if random() % 2 == 0 { random() as u8 } else { bytes[at] ^ 1 << (random() % 8) };
            if random() % 8 == 0 {
                bytes.truncate(random() % good.len());
            }
            for certificate in Certificate::read(&bytes).unwrap_or_default() {
                let _ = (
                    certificate.fingerprint(),
                    certificate.bits(),
                    certificate.created(),
                    certificate.keys(),
                );
                let _ = (certificate.to_text(), certificate.is_locked(), certificate.open(None).is_ok());
            }
            if let Ok(parsed) = cleartext::parse(&bytes)
                && bytes != good
            {
                for signature in &parsed.signatures {
                    let verdict = signature.verify(&keys, &parsed.canonical, NOW);
                    assert!(verdict != Verdict::Good || parsed.text == "text\n", "{}", parsed.text);
                }
            }
        }
    }
}

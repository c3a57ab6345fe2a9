//! The commands of `apptainer` around images, by the program itself: pulled, inspected, signed, verified, pushed.
#![allow(clippy::unwrap_used)]

mod shelf;

use std::fs;
use std::io::Write;
use std::process::Stdio;

use shelf::*;

impl Shelf {
    fn apptainer(&self, args: &[&str]) -> Said {
        self.isles(&[&["apptainer"], args].concat())
    }

    /// The same with answers to what it asks.
    fn answered(&self, args: &[&str], input: &str) -> Said {
        let mut command = self.command_in("state", &[&["apptainer"], args].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        Said::of(child.wait_with_output().unwrap())
    }

    /// `app.sif`, of two layers.
    fn sif(&self) {
        let layers = [tar(&[("bin/sh", &noise(200_000, 1)), ("etc/a", b"a")]), tar(&[("etc/.wh.a", b"")])];
        layout(&self.path("layout"), "app:1", &layers);
        self.share("layout");
        let said = self.apptainer(&["pull", "app.sif", "oci:layout:app:1"]);
        assert!(said.err.contains("INFO:    Creating SIF file..."), "{said:?}");
        said.fine();
    }

    /// A key of one's own without a passphrase; gives its fingerprint.
    fn key(&self) -> String {
        let said = self.apptainer(&[
            "key",
            "newpair",
            "--name",
            "Ada",
            "--email",
            "ada@example.org",
            "--comment",
            "",
            "--password",
            "",
        ]);
        assert_eq!(said.fine(), "Generating Entity and OpenPGP Key Pair... done\n");
        let list = self.apptainer(&["key", "list"]).fine();
        assert!(
            list.starts_with("Public key listing (") && list.contains("User:              Ada () <ada@"),
            "{list}"
        );
        let line = list.lines().find_map(|line| line.trim().strip_prefix("Fingerprint:")).unwrap();
        line.trim().to_owned()
    }
}

#[test]
fn what_is_signed_is_verified() {
    for shelf in both() {
        shelf.sif();
        shelf.apptainer(&["verify", "app.sif"]).fails(
            255,
            &[
                "INFO:    Verifying image with PGP key material",
                "FATAL:   Failed to verify container: signature not found",
            ],
        );
        shelf.apptainer(&["sign", "app.sif"]).fails(255, &["keyring is empty"]);
        let fingerprint = shelf.key();
        let said = shelf.apptainer(&["sign", "app.sif"]);
        assert!(said.err.contains("INFO:    Signature created and applied to image 'app.sif'"), "{said:?}");
        said.fine();
        let said = shelf.apptainer(&["verify", "app.sif"]);
        assert!(said.err.ends_with("INFO:    Verified signature(s) from image 'app.sif'\n"), "{said:?}");
        let local = format!("{:<18}", "[LOCAL]");
        assert_eq!(
            said.fine(),
            format!(
                "{local} Signing entity: Ada <ada@example.org>\n{local} Fingerprint: {fingerprint}\n\
                 Objects verified:\nID  |GROUP   |LINK    |TYPE\n{}\n\
                 1   |1       |NONE    |Def.FILE\n2   |1       |NONE    |JSON.Generic\n\
                 3   |1       |NONE    |JSON.Generic\n4   |1       |NONE    |FS\n",
                "-".repeat(48)
            )
        );
        let json = shelf.apptainer(&["-q", "verify", "--json", "app.sif"]).fine();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["Signatures"], 1);
        let signer = &json["SignerKeys"][3]["Signer"];
        assert_eq!(signer["Partition"], "FS");
        assert_eq!(signer["Fingerprint"], fingerprint.to_lowercase());
        assert_eq!(signer["KeyLocal"], true);

        // A byte of the root file system changes.
        let mut bytes = fs::read(shelf.path("app.sif")).unwrap();
        let at = bytes.windows(4).position(|w| w == b"hsqs").unwrap();
        bytes[at + 200] ^= 1;
        fs::write(shelf.path("changed.sif"), bytes).unwrap();
        shelf.share("changed.sif");
        let said = shelf.apptainer(&["verify", "changed.sif"]);
        assert!(said.out.contains("Error encountered during signature verification"), "{said:?}");
        said.fails(255, &["data object integrity compromised: 4"]);

        // What is added later is not covered.
        shelf.apptainer(&["sif", "add", "--datatype", "7", "app.sif", "layout/index.json"]).fine();
        shelf.apptainer(&["verify", "app.sif"]).fails(255, &["object 6 is in no group"]);
        shelf.apptainer(&["sif", "del", "6", "app.sif"]).fine();
        shelf.apptainer(&["verify", "app.sif"]).fine();
        shelf.apptainer(&["sif", "dump", "9", "app.sif"]).fails(1, &["has no object 9"]);
        let definition = shelf.apptainer(&["sif", "dump", "1", "app.sif"]).fine();
        assert_eq!(definition, "bootstrap: oci\nfrom: layout:app:1\n\n");
    }
}

#[test]
fn keys_come_and_go() {
    for shelf in both() {
        let fingerprint = shelf.key();
        let id = &fingerprint[24..];
        shelf.answered(&["key", "export", "--armor", "public.asc"], "0\n").fine();
        shelf.answered(&["key", "export", "--secret", "secret.pgp"], "0\n").fine();
        let public = fs::read(shelf.path("public.asc")).unwrap();
        assert!(public.starts_with(b"-----BEGIN PGP PUBLIC KEY BLOCK-----"));
        shelf.apptainer(&["key", "import", "public.asc"]).fails(2, &["already belongs to the keyring"]);
        shelf.apptainer(&["key", "remove", &fingerprint]).fine();
        shelf.apptainer(&["key", "remove", &fingerprint]).fails(255, &["no key matching given fingerprint"]);
        let said = shelf.apptainer(&["key", "import", "public.asc"]).fine();
        assert_eq!(
            said,
            format!("Key with fingerprint {fingerprint} successfully added to the public keyring\n")
        );
        let said = shelf.apptainer(&["key", "import", "--keysdir", "other", "secret.pgp"]).fine();
        assert!(said.contains("private keyring") && said.contains("public keyring"), "{said}");

        let server = Liar::start();
        let url = format!("http://{}", server.address);
        let lookup = format!("/pks/lookup?op=get&options=mr&exact=on&search=0x{fingerprint}");
        server.say(&lookup, 200, "application/pgp-keys", &public);
        server.say("/pks/add", 200, "text/plain", b"thanks");
        let index = "/pks/lookup?op=index&options=mr&fingerprint=on&search=ada";
        let list = format!("info:1:1\npub:{fingerprint}:22:256:1593475316::\nuid:Ada:::\n");
        server.say(index, 200, "text/plain", list.as_bytes());
        let said = shelf.apptainer(&["key", "search", "--url", &url, "ada"]).fine();
        let last = &fingerprint[32..];
        assert_eq!(said, format!("Showing 1 results\n\nKEY ID    BITS  NAME/EMAIL\n{last}  256   Ada\n"));
        let said = shelf.apptainer(&["key", "push", "--url", &url, id]);
        assert!(said.err.contains("INFO:    Key server response: thanks"), "{said:?}");
        said.fine();
        shelf.apptainer(&["key", "remove", &fingerprint]).fine();
        shelf
            .apptainer(&["key", "pull", "--url", &url, &"0".repeat(40)])
            .fails(2, &["no matching keys found"]);
        let said = shelf.apptainer(&["key", "pull", "--url", &url, &fingerprint]).fine();
        assert!(said.starts_with("1 key(s) added to keyring of trust "), "{said}");

        // A signer who is not known here is asked for.
        shelf.sif();
        shelf.apptainer(&["sign", "app.sif"]).fine();
        shelf.apptainer(&["key", "remove", &fingerprint]).fine();
        shelf.apptainer(&["verify", "--local", "app.sif"]).fails(255, &["unknown entity", &fingerprint]);
        let said = shelf.apptainer(&["verify", "--url", &url, "app.sif"]).fine();
        assert!(said.starts_with("[REMOTE]"), "{said}");
    }
}

#[test]
fn certificates_vouch_for_keys() {
    let shelf = both().remove(0);
    let openssl = |args: &[&str]| shelf.peer("openssl", args).filter(|said| said.code == Some(0));
    let made = (|| {
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-subj",
            "/CN=authority",
            "-days",
            "30",
        ])?;
        openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "own.key",
            "-out",
            "own.csr",
            "-subj",
            "/CN=own",
        ])?;
        fs::write(shelf.path("ext"), "extendedKeyUsage=codeSigning\n").unwrap();
        fs::write(shelf.path("ext2"), "extendedKeyUsage=serverAuth\n").unwrap();
        openssl(&[
            "x509",
            "-req",
            "-in",
            "own.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "30",
            "-extfile",
            "ext",
            "-out",
            "own.pem",
        ])?;
        openssl(&[
            "x509",
            "-req",
            "-in",
            "own.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "30",
            "-extfile",
            "ext2",
            "-out",
            "other.pem",
        ])
    })();
    if made.is_none() {
        println!("skip: no certificates without openssl");
        return;
    }
    shelf.sif();
    shelf.apptainer(&["sign", "--key", "own.key", "app.sif"]).fine();
    shelf.apptainer(&["verify", "app.sif"]).fails(255, &["DSSE envelope"]);
    let with = |certificate: &str| {
        shelf.apptainer(&["verify", "--certificate", certificate, "--certificate-roots", "ca.pem", "app.sif"])
    };
    with("own.pem").fine();
    shelf
        .apptainer(&["verify", "--certificate", "own.pem", "app.sif"])
        .fails(255, &["not a trusted certificate"]);
    with("other.pem").fails(255, &["not a trusted certificate"]);
    with("ca.key").fails(255, &["holds no certificate"]);
}

#[test]
fn files_go_to_a_registry_and_back() {
    let Some(registry) = Registry::start(false) else { return };
    for (n, shelf) in both().into_iter().enumerate() {
        shelf.sif();
        let uri = format!("oras://{}/team{n}/app:1", registry.address);
        let said = shelf.apptainer(&["push", "app.sif", &uri]);
        assert!(said.err.contains("INFO:    Upload complete"), "{said:?}");
        said.fine();
        shelf.apptainer(&["pull", &uri]).fine();
        assert!(fs::read(shelf.path("app.sif")).unwrap() == fs::read(shelf.path("app_1.sif")).unwrap());
        shelf
            .apptainer(&["pull", &uri])
            .fails(255, &["Image file already exists: \"app_1.sif\" - will not overwrite"]);
        shelf.apptainer(&["pull", "--force", &uri]).fine();

        // As an image of layers, and back: the runscript and the rest are as they were.
        let uri = format!("docker://{}/team{n}/image:1", registry.address);
        shelf.apptainer(&["push", "app.sif", &uri]).fine();
        shelf.apptainer(&["pull", "back.sif", &uri]).fine();
        let runscript = |file: &str| shelf.apptainer(&["inspect", "--runscript", file]).fine();
        assert_eq!(runscript("back.sif"), runscript("app.sif"));
        let labels = shelf.apptainer(&["inspect", "back.sif"]).fine();
        assert!(labels.contains("org.label-schema.usage.singularity.deffile.bootstrap: "), "{labels}");
        let json = shelf.apptainer(&["inspect", "--json", "--deffile", "app.sif"]).fine();
        assert_eq!(
            json,
            "{\n\t\"data\": {\n\t\t\"attributes\": {\n\t\t\t\"deffile\": \"bootstrap: oci\\nfrom: layout:app:1\"\n\t\t}\n\t},\n\
             \t\"type\": \"container\"\n}\n"
        );
        assert_eq!(
            shelf.apptainer(&["run-help", "app.sif"]).fine(),
            "No help sections were defined for this image\n"
        );
    }
}

#[test]
fn caches_logins_and_overlays() {
    for shelf in both() {
        shelf.sif();
        let list = shelf.apptainer(&["cache", "list"]).fine();
        assert!(list.starts_with("There are 0 container file(s) using 0.00 KiB and "), "{list}");
        fs::create_dir_all(shelf.path(".apptainer/cache/oras")).unwrap();
        fs::write(shelf.path(".apptainer/cache/oras/sha256.abc"), vec![0; 2048]).unwrap();
        if shelf.path("isles").exists() {
            let owner =
                fs::metadata(shelf.path("app.sif")).map(|m| std::os::unix::fs::MetadataExt::uid(&m)).unwrap();
            for name in [
                ".apptainer",
                ".apptainer/cache",
                ".apptainer/cache/oras",
                ".apptainer/cache/oras/sha256.abc",
            ] {
                std::os::unix::fs::chown(shelf.path(name), Some(owner), Some(owner)).unwrap();
            }
        }
        let list = shelf.apptainer(&["cache", "list", "-v", "--type", "oras"]).fine();
        assert!(list.contains("sha256.abc") && list.ends_with("Total space used: 2.00 KiB\n"), "{list}");
        let said = shelf.answered(&["cache", "clean"], "n\n");
        assert!(said.err.contains("canceled"), "{said:?}");
        let said = shelf.apptainer(&["cache", "clean", "--dry-run"]).fine();
        assert!(said.contains("Removing oras cache entry: sha256.abc"), "{said}");
        assert!(shelf.path(".apptainer/cache/oras/sha256.abc").exists());
        shelf.apptainer(&["cache", "clean", "--force"]).fine();
        assert!(!shelf.path(".apptainer/cache/oras/sha256.abc").exists());
        shelf.apptainer(&["cache", "list", "--type", "what"]).fails(255, &["invalid cache type: what"]);

        shelf.apptainer(&["overlay", "create", "--size", "1", "o.img"]).fails(255, &["64 MiB"]);
        shelf.apptainer(&["overlay", "create", "--sparse", "o.img"]).fine();
        assert_eq!(fs::metadata(shelf.path("o.img")).unwrap().len(), 64 << 20);
        shelf.apptainer(&["overlay", "create", "o.img"]).fails(255, &["already exists"]);
        shelf.apptainer(&["overlay", "create", "--sparse", "app.sif"]).fine();
        let list = shelf.apptainer(&["sif", "list", "app.sif"]).fine();
        assert!(list.contains("|FS (Ext3/Overlay/"), "{list}");
        shelf.apptainer(&["overlay", "create", "app.sif"]).fails(255, &["already exists in app.sif (ID: 5)"]);

        assert_eq!(shelf.apptainer(&["plugin", "list"]).fine(), "There are no plugins installed.\n");
        shelf.apptainer(&["plugin", "install", "x"]).fails(255, &["a plugin is not supported"]);
        shelf
            .apptainer(&["config", "fakeroot", "--add", "nosuchuser"])
            .fails(255, &["there is no user 'nosuchuser'"]);
        assert!(shelf.apptainer(&["capability", "avail", "cap_chown"]).fine().starts_with("CAP_CHOWN:"));
    }
    let Some(registry) = Registry::start(true) else { return };
    for shelf in both() {
        let uri = format!("docker://{}", registry.address);
        let login = ["registry", "login", "--username", "me", "--password-stdin", &uri];
        shelf.answered(&login, "wrong\n").fails(255, &["FATAL:"]);
        let said = shelf.answered(&login, "secret\n");
        assert!(said.err.contains("INFO:    Token stored in "), "{said:?}");
        said.fine();
        let list = shelf.apptainer(&["registry", "list"]).fine();
        assert!(list.contains(&format!("{uri}  ✓")), "{list}");
        shelf.apptainer(&["registry", "logout", &uri]).fine();
        shelf.apptainer(&["registry", "logout", &uri]).fails(255, &["is not configured"]);
    }
}

#[test]
fn endpoints_are_remembered() {
    for shelf in both() {
        let list = shelf.apptainer(&["remote", "list"]).fine();
        assert!(list.contains("DefaultRemote  cloud.apptainer.org  ✓         ✓"), "{list}");
        let server = Liar::start();
        let services = format!(
            r#"{{"libraryAPI":{{"uri":"http://{0}"}},"keystoreAPI":{{"uri":"http://{0}/keys"}}}}"#,
            server.address
        );
        server.say("/assets/config/config.prod.json", 200, "application/json", services.as_bytes());
        server.say("/version", 200, "application/json", b"{}");
        let add = ["remote", "add", "--no-login", "--insecure", "mine", server.address.as_str()];
        let said = shelf.apptainer(&add);
        assert!(said.err.contains("INFO:    Remote \"mine\" added."), "{said:?}");
        said.fine();
        shelf.apptainer(&add).fails(255, &["mine is already a remote"]);
        let status = shelf.apptainer(&["remote", "status"]).fine();
        assert!(status.contains("libraryAPI   OK      http://"), "{status}");
        assert!(status.contains("keystoreAPI  N/A     http://"), "{status}");

        // The endpoint says where keys are, unless the settings do.
        let nobody = "0".repeat(40);
        shelf.apptainer(&["key", "pull", &nobody]).fails(2, &["no matching keys found"]);
        let found = "/keys/pks/lookup?op=index&options=mr&fingerprint=on&search=ada";
        server.say(found, 200, "text/plain", b"info:1:1\npub:AAAA:1:2048:::\n");
        assert!(shelf.apptainer(&["key", "search", "ada"]).fine().contains("AAAA    2048"));
        let other = Liar::start();
        let url = format!("http://{}", other.address);
        shelf.apptainer(&["keyserver", "add", "--insecure", "mine", &url]).fine();
        shelf.apptainer(&["keyserver", "add", &url]).fails(255, &["is there already"]);
        let list = shelf.apptainer(&["keyserver", "list", "mine"]).fine();
        assert!(list.contains(&format!("#1  {url}")) && list.contains("mine ^"), "{list}");
        shelf.apptainer(&["key", "search", "ada"]).fails(2, &["no matching keys found"]);
        shelf.apptainer(&["keyserver", "remove", &url]).fails(255, &["is the only key server"]);

        fs::write(shelf.path("token"), "secret\n").unwrap();
        shelf.apptainer(&["remote", "login", "--tokenfile", "token"]).fine();
        let settings = fs::read_to_string(shelf.path(".apptainer/remote.yaml")).unwrap();
        assert!(
            settings.contains("    Token: secret\n") && settings.starts_with("Active: mine\n"),
            "{settings}"
        );
        shelf.apptainer(&["remote", "logout"]).fine();
        assert!(!fs::read_to_string(shelf.path(".apptainer/remote.yaml")).unwrap().contains("secret"));
        shelf.apptainer(&["remote", "use", "DefaultRemote"]).fine();
        shelf.apptainer(&["remote", "remove", "mine"]).fine();
        shelf.apptainer(&["remote", "use", "mine"]).fails(255, &["mine is not a remote"]);
        shelf.apptainer(&["remote", "remove", "DefaultRemote"]).fails(255, &["global"]);
    }
}

#[test]
fn libraries_are_searched_and_cleared() {
    let shelf = both().remove(0);
    let server = Liar::start();
    let url = format!("http://{}", server.address);
    let arch = isles_spec::Platform::host().architecture;
    let image = r#"{"entityName":"a","collectionName":"b","containerName":"cow","tags":["1","2"],"fingerprints":["AB"]}"#;
    let found = format!(r#"{{"data":{{"image":[{image}]}}}}"#);
    server.say(&format!("/v1/search?value=cow&arch={arch}"), 200, "application/json", found.as_bytes());
    let said = shelf.apptainer(&["search", "--library", &url, "cow"]).fine();
    assert_eq!(
        said,
        format!(
            "Found 1 container images for {arch} matching \"cow\":\n\n\tlibrary://a/b/cow:1,2\n\t\tSigned by: AB\n\n"
        )
    );
    shelf.apptainer(&["search", "--library", &url, "co"]).fails(255, &["at least 3 characters"]);
    assert!(
        shelf
            .apptainer(&["search", "--library", &url, "dog"])
            .fine()
            .starts_with("No container images found")
    );
    server.say(&format!("/v1/images/a/b/cow:1?arch={arch}"), 200, "application/json", b"{}");
    let delete = ["delete", "--library", &url, "library://a/b/cow:1"];
    let said = shelf.answered(&delete, "n\n");
    assert!(said.out.starts_with("Are you sure") && said.err.is_empty(), "{said:?}");
    let said = shelf.answered(&delete, "y\n");
    assert!(said.err.contains("INFO:    Image library://a/b/cow:1"), "{said:?}");
    shelf
        .apptainer(&["delete", "--force", "--library", &url, "library://a/b/dog:1"])
        .fails(255, &["is not there"]);
    shelf.apptainer(&["delete", "app.sif"]).fails(255, &["No transport type URI supplied"]);
}

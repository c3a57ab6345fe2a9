//! The registry's page as people see it, in a headless Chromium.
#![allow(clippy::unwrap_used)]

mod browser;
mod shelf;

use browser::Browser;
use isles_spec::Digest;
use isles_spec::image::{Descriptor, ImageConfig, Index, Manifest, media_type};
use isles_store::{Hosted, NewManifest, Ownership, Store};
use serde::Serialize;
use shelf::{Served, Shelf, both, noise, tar};

fn blob(hosted: &Hosted, kind: &str, bytes: &[u8]) -> Descriptor {
    use std::io::Write;
    let digest = isles_store::digest_of_bytes(isles_spec::Algorithm::Sha256, bytes);
    let mut upload = hosted.start_upload(digest.algorithm()).unwrap();
    upload.write_all(bytes).unwrap();
    upload.finish(&digest).unwrap();
    Descriptor::new(kind, digest, bytes.len() as u64)
}

fn document(hosted: &Hosted, kind: &str, document: &impl Serialize, tags: &[&str]) -> Descriptor {
    let bytes = serde_json::to_vec(document).unwrap();
    let digest: Digest = isles_store::digest_of_bytes(isles_spec::Algorithm::Sha256, &bytes);
    hosted.put_manifest(&NewManifest { bytes: &bytes, media_type: kind, digest: &digest, tags }).unwrap();
    Descriptor::new(kind, digest, bytes.len() as u64)
}

/// An image for a platform, whose recipe tries to be a page.
fn image(hosted: &Hosted, platform: &str, tags: &[&str]) -> Descriptor {
    let platform: isles_spec::Platform = platform.parse().unwrap();
    let layers = [tar(&[("a", &noise(300_000, 1))]), tar(&[("b", platform.architecture.as_bytes())])];
    let mut config = ImageConfig::empty(&platform);
    config.created = Some("2026-02-28T12:00:00Z".into());
    config.config.cmd = Some(vec!["python3".into(), "-m".into(), "lab".into()]);
    config.config.labels.insert("owner".into(), "<b>the lab</b>".into());
    let long = format!("RUN apt-get install {} # buildkit", "a-package-with-a-long-name-".repeat(12));
    for step in [long.as_str(), "RUN <script>document.title = 'owned'</script>"] {
        let step = isles_spec::image::History { created_by: Some(step.into()), ..Default::default() };
        config.history.push(step);
    }
    let layers: Vec<Descriptor> =
        layers.iter().map(|layer| blob(hosted, media_type::OCI_LAYER, layer)).collect();
    config.rootfs.diff_ids = layers.iter().map(|l| l.digest.clone()).collect();
    let config = blob(hosted, media_type::OCI_CONFIG, &serde_json::to_vec(&config).unwrap());
    let mut manifest = Manifest::new(config, layers);
    let description = "What the course needs, and <i>no more</i>.";
    manifest.annotations.insert("org.opencontainers.image.description".into(), description.into());
    let mut entry = document(hosted, media_type::OCI_MANIFEST, &manifest, tags);
    entry.platform = Some(platform);
    entry
}

/// What is pushed to the registry that is looked at.
fn stock(shelf: &Shelf) {
    let root = rustix::process::geteuid().is_root();
    let ownership = if root { Ownership::Root } else { Ownership::Single };
    let store = Store::open(shelf.path("server"), ownership).unwrap();
    let hosted = store.hosted("course/lab").unwrap();
    let amd64 = image(&hosted, "linux/amd64", &["v1"]);
    let arm64 = image(&hosted, "linux/arm64", &[]);
    document(&hosted, media_type::OCI_INDEX, &Index::new(vec![amd64.clone(), arm64]), &["v2"]);
    let empty = blob(&hosted, media_type::OCI_EMPTY, b"{}");
    let mut signature = Manifest::new(empty, Vec::new());
    signature.artifact_type = Some("application/x-signature".into());
    signature.subject = Some(Descriptor { platform: None, ..amd64 });
    document(&hosted, media_type::OCI_MANIFEST, &signature, &[]);
    let many = store.hosted("many").unwrap();
    let tags: Vec<String> = (0..205).map(|n| format!("t{n:03}")).collect();
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    image(&many, "linux/amd64", &tags);
}

/// What has to be so on every page.
#[track_caller]
fn sound(browser: &mut Browser, name: &str) {
    for (width, height) in [(1200, 900), (360, 740)] {
        browser.size(width, height);
        let wide = browser.value("document.documentElement.scrollWidth");
        assert!(wide.as_u64().unwrap() <= u64::from(width), "{name}: {wide} of {width} wide");
        browser.picture(&format!("{name}-{width}"));
    }
    browser.size(1200, 900);
    assert_eq!(browser.value("document.documentElement.lang"), "en");
    assert_eq!(browser.value("document.querySelectorAll('h1').length"), 1, "{name}");
    assert_eq!(browser.value("document.querySelectorAll('script, b, i, img, iframe').length"), 0, "{name}");
    assert_eq!(browser.texts("h1")[0], browser.value("document.title").as_str().unwrap(), "{name}");
    assert_eq!(browser.complaints, Vec::<String>::new(), "{name}");
}

#[test]
fn a_person_looks_around() {
    let shelf = &both()[0];
    let server = Served::start(shelf, "server", &[]);
    let Some(mut browser) = Browser::start() else { return };
    let (host, base) = (server.address.clone(), format!("http://{}", server.address));
    browser.open(&base);
    assert!(browser.texts("main")[0].contains("Nothing has been pushed yet"));
    assert_eq!(browser.texts("pre"), [format!("isles push IMAGE {host}/NAME:TAG")]);
    sound(&mut browser, "empty");

    stock(shelf);
    browser.open(&base);
    assert_eq!(browser.texts("tr")[1..].len(), 2);
    sound(&mut browser, "repositories");
    browser.follow("course/lab");
    assert_eq!(browser.value("location.pathname"), "/r/course/lab");
    assert_eq!(browser.texts("td:first-child"), ["v1", "v2"]);
    assert_eq!(browser.texts("td:nth-child(2)"), ["image", "2 platforms"]);
    sound(&mut browser, "tags");

    browser.follow("v1");
    assert_eq!(browser.texts("h1"), ["course/lab:v1"]);
    assert_eq!(
        browser.texts("pre"),
        [format!("isles pull {host}/course/lab:v1\ndocker pull {host}/course/lab:v1")]
    );
    // A stranger's words are words.
    assert_eq!(browser.texts("main > p"), ["What the course needs, and <i>no more</i>."]);
    let facts: Vec<(String, String)> = browser.texts("dt").into_iter().zip(browser.texts("dd")).collect();
    for (name, says) in [
        ("Platform", "linux/amd64"),
        ("Made", "2026-02-28 12:00 UTC"),
        ("Command", "python3 -m lab"),
        ("Label", "owner=<b>the lab</b>"),
    ] {
        assert!(facts.contains(&(name.into(), says.into())), "{name} is not {says}: {facts:?}");
    }
    let recipe = browser.texts("h2 + table td:first-child");
    assert!(recipe[0].starts_with("RUN apt-get install a-package"), "{recipe:?}");
    assert_eq!(recipe[1], "RUN <script>document.title = 'owned'</script>");
    assert!(browser.texts("td").contains(&"application/x-signature".to_owned()));
    sound(&mut browser, "image");
    browser.dark(true);
    let dark = browser.value("getComputedStyle(document.body).backgroundColor");
    browser.picture("image-dark");
    browser.dark(false);
    assert_ne!(browser.value("getComputedStyle(document.body).backgroundColor"), dark);

    // From the signature back to the repository, and to the image of another platform.
    let signature = browser.texts("h2:last-of-type + table a")[0].clone();
    browser.follow(&signature);
    assert!(browser.texts("dd").contains(&"application/x-signature".to_owned()));
    sound(&mut browser, "signature");
    browser.follow("course/lab");
    browser.follow("v2");
    assert_eq!(browser.texts("h2"), ["Platforms"]);
    assert_eq!(browser.texts("td:first-child"), ["linux/amd64", "linux/arm64"]);
    sound(&mut browser, "index");
    let other = browser.texts("td a")[1].clone();
    browser.follow(&other);
    assert!(browser.texts("dd").contains(&"linux/arm64".to_owned()));

    // A list that is longer than a page.
    browser.follow("All repositories");
    browser.follow("many");
    assert_eq!(browser.texts("main > p")[0], "205 tags");
    assert_eq!(browser.texts("td:first-child").len(), 200);
    browser.follow("More");
    assert_eq!(browser.texts("td:first-child"), ["t200", "t201", "t202", "t203", "t204"]);
    assert!(!browser.texts("a").contains(&"More".to_owned()));
    browser.open(&format!("{base}/r/none"));
    assert!(browser.texts("main")[0].contains("There is no none in this registry"));
    browser.complaints.retain(|text| !text.contains("404"));
    sound(&mut browser, "missing");
}

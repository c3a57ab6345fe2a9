//! Archives and documents that strangers wrote, changed at random: what comes of them is a layer, an image or an error in one
//! line, never a panic, a file outside of the store, or memory without bounds. The same in every run; `ISLES_FUZZ` is how
//! many are tried (400 of each where it is not set).
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use isles_spec::Quiet;
use support::*;

/// xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 as usize
    }

    fn below(&mut self, n: usize) -> usize {
        self.next() % n.max(1)
    }
}

fn rounds() -> usize {
    std::env::var("ISLES_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(400)
}

/// Archives with all kinds of entries, long names and whiteouts.
fn archives() -> Vec<Vec<u8>> {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    vec![
        Tar::new().dir("d", 0o755).file("d/f", "text").hardlink("link", "d/f").file("d/.wh.gone", "").done(),
        Tar::new().file(&long, &"x".repeat(3000)).file("plain", "").done(),
        Tar::new().dir("d", 0o700).file("d/.wh..wh..opq", "").file("d/x", "y").done(),
    ]
}

/// Changes bytes, numbers in headers, and lengths; a header's checksum is mostly made good again.
fn changed(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut tar = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(3) {
        let block = random.below(tar.len() / 512) * 512;
        let at = block + random.below(512);
        match random.below(4) {
            0 => tar[at] ^= 1 << random.below(8),
            1 => tar[at] = random.next() as u8,
            // The kind, and the size.
            2 => tar[block + 156] = *b"0123456789xgLKSD\0".get(random.below(17)).unwrap(),
            _ => tar[block + 124..block + 135].copy_from_slice(
                [b"00000000000", b"77777777777", b"00000001000", b"\x80\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"]
                    [random.below(4)],
            ),
        }
        if random.below(4) > 0 {
            tar[block + 148..block + 156].fill(b' ');
            let sum: u32 = tar[block..block + 512].iter().map(|byte| u32::from(*byte)).sum();
            tar[block + 148..block + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    if random.below(8) == 0 {
        tar.truncate(random.below(tar.len()));
    }
    tar
}

#[test]
fn archives_that_were_changed() {
    let (seeds, mut random) = (archives(), Random(0x9e37_79b9_7f4a_7c15));
    let home = Home::new();
    let (mut fine, mut refused) = (0, 0);
    for round in 0..rounds() {
        let tar = changed(&seeds, &mut random);
        match home.unpack(&tar) {
            Ok(_) => fine += 1,
            Err(error) => {
                assert!(!error.to_string().contains('\n'), "round {round}: {error}");
                refused += 1;
            }
        }
    }
    assert!(fine > rounds() / 20 && refused > rounds() / 20, "{fine} unpacked, {refused} refused");
    // Nothing was made beside the store.
    let names: Vec<_> = fs::read_dir(home.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["store"]);
}

/// A layout of one image whose documents are changed: their digests are made good again, since what has a wrong one is
/// refused before it is read.
#[test]
fn documents_that_were_changed() {
    const WORDS: [&str; 12] = [
        "null",
        "-1",
        "18446744073709551616",
        "\"\"",
        "[]",
        "{}",
        "true",
        "1e400",
        "\"sha256:00\"",
        "\"../../x\"",
        "[[[[[[[[[[]]]]]]]]]]",
        "\"application/vnd.oci.image.index.v1+json\"",
    ];
    let hex = |bytes: &[u8]| sha256(bytes);
    let layer = Tar::new().file("f", "x").done();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","created":"2024-01-01T00:00:00Z","config":{{"Env":["A=1"],"Cmd":["x"],"Labels":{{"a":"b"}},"ExposedPorts":{{"80/tcp":{{}}}},"Healthcheck":{{"Test":["NONE"],"Interval":1}}}},"rootfs":{{"type":"layers","diff_ids":["{0}"]}},"history":[{{"created_by":"x"}}]}}"#,
        hex(&layer)
    );
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let home = Home::new();
    let (mut fine, mut refused) = (0, 0);
    for round in 0..rounds() {
        // A value of the documents for another, or a byte for another.
        let mut change = |text: String, wanted: bool| -> Vec<u8> {
            let mut bytes = text.into_bytes();
            if !wanted {
                return bytes;
            }
            if random.below(2) == 0 {
                let at = random.below(bytes.len());
                bytes[at] = random.next() as u8;
                return bytes;
            }
            let ends: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] == b':').collect();
            let from = ends[random.below(ends.len())] + 1;
            let until = (from..bytes.len()).find(|at| b",}]".contains(&bytes[*at])).unwrap_or(bytes.len());
            bytes.splice(from..until, WORDS[random.below(WORDS.len())].bytes());
            bytes
        };
        let which = round % 3;
        let config = change(config.clone(), which == 0);
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":{}}}],"annotations":{{"x":"y"}}}}"#,
            hex(&config),
            config.len(),
            hex(&layer),
            layer.len()
        );
        let manifest = change(manifest, which == 1);
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"a:1"}},"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
            hex(&manifest),
            manifest.len()
        );
        let index = change(index, which == 2);
        let place = home.dir.path().join("layout");
        let blobs = place.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(place.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        fs::write(place.join("index.json"), &index).unwrap();
        for bytes in [&config, &manifest, &layer] {
            fs::write(blobs.join(hex(bytes).hex()), bytes).unwrap();
        }
        match home.store.import_oci_dir(&home.lease(), &place, None, &Quiet) {
            Ok(_) => fine += 1,
            Err(error) => {
                assert!(!error.to_string().contains('\n'), "round {round}: {error}");
                refused += 1;
            }
        }
        fs::remove_dir_all(&place).unwrap();
    }
    assert!(fine > rounds() / 20 && refused > rounds() / 20, "{fine} taken, {refused} refused");
    let names: Vec<_> = fs::read_dir(home.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["store"]);
}

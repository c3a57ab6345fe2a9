//! Where the test data is that the project did not write.

use std::path::PathBuf;

/// A file of the format's own test images, or `None` where there are none; then the test has said so.
pub fn conformance(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("ISLES_CONFORMANCE")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance"));
    let path = root.join("sif").join(name);
    if !path.exists() {
        println!("skip: no {} (set ISLES_CONFORMANCE)", path.display());
        return None;
    }
    Some(path)
}

//! Documents of programs in Go, which write `null` where something is empty.

use serde::{Deserialize, Deserializer};

/// Reads `null` as what is absent reads: for `deserialize_with`.
pub fn null_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

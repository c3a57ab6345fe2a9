//! Envelopes with their signatures (DSSE 1.0, secure-systems-lab/dsse).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::{Deserialize, Serialize};

use crate::pem::{PrivateKey, PublicKey};

/// What is in the envelopes of SIF files.
const PAYLOAD_TYPE: &str = "application/vnd.sylabs.sif-metadata+json";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload_type: String,
    payload: String,
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
struct Signature {
    #[serde(default)]
    keyid: String,
    sig: String,
}

/// What is signed: the type and the payload with their lengths, so that neither can stand for the other.
fn authenticated(payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// An envelope that all of the keys have signed.
pub fn sign(payload: &[u8], keys: &[PrivateKey]) -> Option<Vec<u8>> {
    let message = authenticated(payload);
    let mut signatures = Vec::with_capacity(keys.len());
    for key in keys {
        let sig = STANDARD.encode(key.sign(&message)?);
        signatures.push(Signature { keyid: key.public().id(), sig });
    }
    let envelope =
        Envelope { payload_type: PAYLOAD_TYPE.to_owned(), payload: STANDARD.encode(payload), signatures };
    let mut bytes = serde_json::to_vec(&envelope).ok()?;
    bytes.push(b'\n');
    Some(bytes)
}

/// Whether this is an envelope of the kind that SIF files have.
pub fn is_envelope(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Envelope>(bytes).is_ok_and(|envelope| envelope.payload_type == PAYLOAD_TYPE)
}

/// The payload of an envelope and those of the keys that have signed it, if one has; `Err` says why not.
pub fn verify(bytes: &[u8], keys: &[PublicKey]) -> Result<(Vec<u8>, Vec<PublicKey>), &'static str> {
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(|_| "the envelope is malformed")?;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err("the envelope holds something else");
    }
    let decode = |text: &str| STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text));
    let payload = decode(&envelope.payload).map_err(|_| "the envelope is malformed")?;
    let message = authenticated(&payload);
    let values: Vec<Vec<u8>> = envelope.signatures.iter().filter_map(|s| decode(&s.sig).ok()).collect();
    let good = keys.iter().filter(|key| values.iter().any(|value| key.verifies(&message, value)));
    let good: Vec<PublicKey> = good.cloned().collect();
    if good.is_empty() { Err("none of its signatures is by the given key") } else { Ok((payload, good)) }
}

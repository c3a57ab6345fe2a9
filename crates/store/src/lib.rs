//! Images at rest: content-addressed blobs, references, unpacked layers, writable layers.

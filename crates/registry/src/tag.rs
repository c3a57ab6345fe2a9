//! A further name for what a registry has.

use isles_spec::image::Descriptor;
use isles_spec::{Quiet, Reference};

use crate::client::Client;
use crate::error::Result;
use crate::upload::Sender;

impl Client {
    /// Gives what `reference` names another tag in its repository: the same manifest or index, byte for byte.
    ///
    /// # Errors
    /// There is nothing of that name, the tag is none, or the registry does not let the caller write.
    pub fn tag(&self, reference: &Reference, tag: &str) -> Result<Descriptor> {
        let target = reference.with_tag(tag)?;
        let repository = self.repository(reference)?;
        // Of the place itself: a mirror may be behind.
        let found = repository.manifest(&reference.normalized())?;
        Sender::new(&repository, &Quiet).document(&found.media_type, &found.bytes, &target)
    }
}

//! What goes along with what a container prints: by what it is known, and labels and variables that were asked for.

use isles_spec::image::ContainerConfig;
use isles_spec::{Tag, Tagged};

use crate::record::Record;

/// What a log tells of its container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    pub id: String,
    pub name: String,
    pub image: String,
    pub tag: String,
    /// As far as they were asked for, and are there.
    pub attributes: Vec<(String, String)>,
}

impl About {
    /// Of a container with this image's configuration, where it stands on one.
    pub(crate) fn of(record: &Record, image: &ContainerConfig) -> About {
        let workload = &record.workload;
        let wanted = &workload.log;
        let image_id = record.image_id.as_ref().map(ToString::to_string).unwrap_or_default();
        let tagged =
            Tagged { id: &record.id, name: &record.name, image_id: &image_id, image_name: &record.image };
        let tag = wanted.tag.clone().unwrap_or_else(Tag::usual).of(&tagged);
        let mut attributes = Vec::new();
        for name in &wanted.labels {
            let value = workload.labels.get(name).or_else(|| image.labels.get(name));
            attributes.extend(value.map(|value| (name.clone(), value.clone())));
        }
        for name in &wanted.env {
            // The last one counts.
            let mut all = image.env.iter().chain(&workload.env).filter_map(|entry| entry.split_once('='));
            let value = all.rfind(|(other, _)| other == name);
            attributes.extend(value.map(|(_, value)| (name.clone(), value.to_owned())));
        }
        if wanted.tag.is_some() {
            attributes.push(("tag".to_owned(), tag.clone()));
        }
        About {
            id: record.id.clone(),
            name: record.name.clone(),
            image: record.image.clone(),
            tag,
            attributes,
        }
    }
}

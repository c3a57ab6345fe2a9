//! `isles image`

super::group::group! {
    /// Commands for images, with docker's words for them.
    #[command(after_help = "Examples:\n  isles image ls\n  isles image prune -a --filter until=168h")]
    cmd_image;
    Build "build" build::cmd_build,
    History "history" history::cmd_history,
    Import "import" import::cmd_import,
    Inspect "inspect" inspect::cmd_inspect_image,
    Load "load" load::cmd_load,
    Ls "ls" | "list" images::cmd_images,
    Prune "prune" image_prune::cmd_image_prune,
    Pull "pull" pull::cmd_pull,
    Push "push" push::cmd_push,
    Rm "rm" | "remove" rmi::cmd_rmi,
    Save "save" save::cmd_save,
    Tag "tag" tag::cmd_tag,
}

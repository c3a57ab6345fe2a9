//! `isles system`

super::group::group! {
    /// Commands for all that is here, with docker's words for them.
    #[command(after_help = "Examples:\n  isles system df -v\n  isles system prune -f")]
    cmd_system;
    Df "df" df::cmd_df,
    Events "events" events::cmd_events,
    Info "info" info::cmd_info,
    Prune "prune" system_prune::cmd_system_prune,
}

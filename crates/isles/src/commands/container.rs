//! `isles container`

super::group::group! {
    /// Commands for containers, with docker's words for them.
    #[command(after_help = "Examples:\n  isles container ls -a\n  isles container prune -f --filter until=24h")]
    cmd_container;
    Attach "attach" attach::cmd_attach,
    Commit "commit" commit::cmd_commit,
    Cp "cp" cp::cmd_cp,
    Create "create" create::cmd_create,
    Diff "diff" diff::cmd_diff,
    Exec "exec" exec::cmd_exec,
    Export "export" export::cmd_export,
    Inspect "inspect" inspect::cmd_inspect_container,
    Kill "kill" kill::cmd_kill,
    Logs "logs" logs::cmd_logs,
    Ls "ls" | "list" ps::cmd_ps,
    Pause "pause" pause::cmd_pause,
    Port "port" port::cmd_port,
    Prune "prune" container_prune::cmd_container_prune,
    Rename "rename" rename::cmd_rename,
    Restart "restart" restart::cmd_restart,
    Rm "rm" | "remove" rm::cmd_rm,
    Run "run" run::cmd_run,
    Start "start" start::cmd_start,
    Stats "stats" stats::cmd_stats,
    Stop "stop" stop::cmd_stop,
    Top "top" top::cmd_top,
    Unpause "unpause" unpause::cmd_unpause,
    Update "update" update::cmd_update,
    Wait "wait" wait::cmd_wait,
}

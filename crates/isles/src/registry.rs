//! How commands speak to registries: the options that they share.

use isles_registry::{Client, ClientOptions};

/// Options of every command that speaks to a registry.
#[derive(Debug, Clone, clap::Args)]
pub struct Connection {
    /// Check certificates, and refuse plain HTTP except on loopback; --tls-verify=false does neither.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub tls_verify: bool,
}

impl Connection {
    pub fn client(&self) -> Client {
        Client::new(self.options())
    }

    /// For builds: recipes name registries, too.
    pub fn client_of_recipes(&self) -> Client {
        Client::new(ClientOptions { guarded: true, ..self.options() })
    }

    pub fn options(&self) -> ClientOptions {
        ClientOptions { tls_verify: self.tls_verify, ..ClientOptions::default() }
    }
}

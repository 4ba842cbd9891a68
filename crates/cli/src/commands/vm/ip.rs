//! `vm ip`: addresses, each with its source.

use std::time::{Duration, Instant};

use clap::Args;
use vmkeep_api::body::AddressView;
use vmkeep_types::error::Error;
use vmkeep_types::name::Name;

use crate::commands::or_dash;
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::{Cell, Format, Row};

/// Between two looks while the guest boots.
const LOOK: Duration = Duration::from_millis(500);

/// How long `--wait` waits when nothing is said: a guest under emulation boots for minutes.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, Args)]
pub struct IpArgs {
    /// VM
    name: Name,
}

impl Row for AddressView {
    const HEAD: &'static [&'static str] = &["ADDRESS", "NIC", "SOURCE"];
    const WIDE: &'static [&'static str] = &["MAC"];
    fn name(&self) -> String {
        self.plain().to_owned()
    }
    fn cells(&self) -> Vec<Cell> {
        vec![self.address.clone().into(), or_dash(self.nic.as_ref()).into(), self.source.clone().into()]
    }
    fn wide(&self) -> Vec<Cell> {
        vec![self.mac.clone().into()]
    }
}

/// What an address is good for.
pub trait Address {
    /// Without the prefix length.
    fn plain(&self) -> &str;
    fn is_link_local(&self) -> bool;
}

impl Address for AddressView {
    fn plain(&self) -> &str {
        self.address.split('/').next().unwrap_or(&self.address)
    }
    fn is_link_local(&self) -> bool {
        self.address.starts_with("fe80:")
            || self.address.starts_with("169.254.")
            || self.address.starts_with("127.")
            || self.plain() == "::1"
    }
}

pub async fn run(ctx: &Ctx, args: IpArgs) -> Result<(), Failure> {
    let addresses = addresses(ctx, &args.name, ctx.global.wait).await?;
    if addresses.is_empty() && matches!(ctx.printer.format, Format::Table | Format::Wide | Format::Name) {
        let error = Error::not_found("known address of vm", &args.name);
        return Err(error.hint("it may still be booting: 'vmkeep vm ip --wait'; or has it no agent and no lease?").into());
    }
    ctx.printer.list(&addresses)
}

/// Addresses that others can reach first; with `wait` until there is such a one.
pub async fn addresses(ctx: &Ctx, name: &Name, wait: bool) -> Result<Vec<AddressView>, Failure> {
    let patience = ctx.global.timeout.map_or(PATIENCE, |t| Duration::from_secs(t.get()));
    let begun = Instant::now();
    loop {
        let mut found: Vec<AddressView> = ctx.call("vm.addresses")?.field("name", name).answer().await?;
        found.sort_by_key(|a| (a.is_link_local(), a.address.contains(':')));
        let usable = found.first().is_some_and(|a| !a.is_link_local());
        if usable || !wait || begun.elapsed() > patience {
            return Ok(found);
        }
        tokio::time::sleep(LOOK).await;
    }
}

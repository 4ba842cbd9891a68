//! The API's one address.

use clap::Subcommand;
use vmkeep_types::cluster::Vip;

use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::Format;

#[derive(Debug, Subcommand)]
pub enum VipCommand {
    /// Give the API an address that moves to a control node which answers
    Set {
        /// An address that nobody has, and the length of its network, like 10.0.0.100/24
        address: String,
        /// Interface of every control node; without it, the one that has the member's address
        #[arg(long, value_name = "NAME")]
        interface: Option<String>,
    },
    /// Show it
    Show,
    /// Take it away
    Clear,
}

pub async fn run(ctx: &Ctx, command: VipCommand) -> Result<(), Failure> {
    match command {
        VipCommand::Set { address, interface } => {
            if ctx.is_rehearsal(&format!("give the API the address {address}")) {
                return Ok(());
            }
            let vip: Vip = ctx.call("cluster.vip.put")?.json(&Vip { address, interface }).answer().await?;
            ctx.printer
                .say(&format!("the API will be at {} within a minute; keepalived must be installed on every control node", vip.address));
        }
        VipCommand::Show => {
            let vip: Vip = ctx.call("cluster.vip.get")?.answer().await?;
            match ctx.printer.format {
                Format::Json | Format::Yaml => ctx.printer.value(&vip)?,
                Format::Table | Format::Wide | Format::Name => ctx.printer.out(&vip.address),
            }
        }
        VipCommand::Clear => {
            if ctx.is_rehearsal("take the API's address away") {
                return Ok(());
            }
            ctx.call("cluster.vip.delete")?.done().await?;
            ctx.printer.say("the API has no address of its own any more");
        }
    }
    Ok(())
}

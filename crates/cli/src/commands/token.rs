//! `token create|list|show|delete`: access over the network.

use clap::{Args, Subcommand, ValueEnum};
use vmkeep_api::body::{TokenCreate, TokenCreated, TokenView};
use vmkeep_types::error::Error;
use vmkeep_types::name::Name;
use vmkeep_types::record::Role;
use vmkeep_types::units::Seconds;

use super::{pages, show, word};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::{Cell, Format, Row};
use crate::time;

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// List tokens, without their secrets
    #[command(visible_aliases = ["ls", "get"])]
    List,
    /// Show one token, without its secret
    Show {
        /// Its id, from 'vmkeep token list'
        id: String,
    },
    /// Make a token; its secret is printed once
    Create(CreateArgs),
    /// Revoke a token
    #[command(visible_alias = "rm")]
    Delete {
        /// Its id, from 'vmkeep token list'
        id: String,
    },
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the token, for the audit log
    name: Name,
    /// What it may do
    #[arg(long, value_enum, default_value = "viewer")]
    role: RoleArg,
    /// It ends after this time, like 90d; without it, never
    #[arg(long, value_name = "TIME")]
    expires_in: Option<Seconds>,
    /// It opens this project only; may be given more than once. Without it, all of them
    #[arg(long = "only", value_name = "PROJECT")]
    only: Vec<Name>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RoleArg {
    /// Reads
    Viewer,
    /// Changes VMs, images, volumes
    Operator,
    /// Everything
    Admin,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Viewer => Self::Viewer,
            RoleArg::Operator => Self::Operator,
            RoleArg::Admin => Self::Admin,
        }
    }
}

impl Row for TokenView {
    const HEAD: &'static [&'static str] = &["ID", "NAME", "ROLE", "EXPIRES"];
    const WIDE: &'static [&'static str] = &["PROJECTS", "CREATED"];
    fn name(&self) -> String {
        self.id.clone()
    }
    fn cells(&self) -> Vec<Cell> {
        let expires = self.expires_at.map_or_else(|| "never".into(), time::local);
        vec![self.id.clone().into(), self.name.to_string().into(), word(&self.role).into(), expires.into()]
    }
    fn wide(&self) -> Vec<Cell> {
        let only = self.projects.iter().flatten().map(Name::to_string).collect::<Vec<_>>();
        let projects = if only.is_empty() { "all".into() } else { only.join(", ") };
        vec![projects.into(), time::local(self.created_at).into()]
    }
}

pub async fn run(ctx: &Ctx, command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::List => ctx.printer.list(&pages::<TokenView>(ctx, "token.list", None).await?),
        TokenCommand::Show { id } => {
            let tokens: Vec<TokenView> = pages(ctx, "token.list", None).await?;
            let absent = || Error::not_found("token", &id).hint("see 'vmkeep token list'");
            let token = tokens.iter().find(|t| t.id == id).ok_or_else(absent)?;
            let card = [
                ("Id", token.id.clone()),
                ("Name", token.name.to_string()),
                ("Role", word(&token.role)),
                ("Expires", token.expires_at.map_or_else(|| "never".into(), time::local)),
                ("Created", time::local(token.created_at)),
            ];
            show(ctx, token, &card)
        }
        TokenCommand::Create(args) => create(ctx, args).await,
        TokenCommand::Delete { id } => {
            if ctx.is_rehearsal(&format!("revoke token {id}")) {
                return Ok(());
            }
            ctx.confirm(&format!("Revoke token {id}? Whoever uses it is locked out."))?;
            ctx.call("token.delete")?.field("id", &id).done().await?;
            ctx.printer.say(&format!("token {id} is revoked"));
            Ok(())
        }
    }
}

async fn create(ctx: &Ctx, args: CreateArgs) -> Result<(), Failure> {
    if ctx.is_rehearsal(&format!("make token '{}'", args.name)) {
        return Ok(());
    }
    if ctx.printer.format == Format::Name {
        return Err(Failure::usage("a token is of no use without its secret", "leave -o out for the secret alone, or take -o json"));
    }
    let projects = (!args.only.is_empty()).then(|| args.only.into_iter().collect());
    let body = TokenCreate { name: args.name, role: args.role.into(), expires_in: args.expires_in, projects };
    let made: TokenCreated = ctx.call("token.create")?.json(&body).answer().await?;
    match ctx.printer.format {
        Format::Json | Format::Yaml => ctx.printer.value(&made)?,
        // The secret alone, so that `vmkeep token create ci > token` makes a --token-file.
        _ => ctx.printer.out(&made.secret),
    }
    ctx.printer.say(&format!("token {} ({}, {}); its secret is shown only now", made.token.id, made.token.name, word(&made.token.role)));
    Ok(())
}

//! What every command has: the client, the printer, waiting on operations, and asking before something is destroyed.

use std::cell::OnceCell;
use std::io::{IsTerminal, Write};
use std::path::Path;

use futures_util::{StreamExt, stream};
use vmkeep_api::body::Accepted;
use vmkeep_api::client::{Call, Client, Identity};
use vmkeep_api::follow::follow;
use vmkeep_types::error::Error;
use vmkeep_types::operation::{OpState, Operation};
use vmkeep_types::units::Seconds;

use crate::cli::Global;
use crate::failure::{Failure, INTERRUPTED};
use crate::plain::escaped;
use crate::printer::{Format, Printer};
use crate::progress::Board;

/// Operations followed at once; the others go on by themselves and are looked at in turn.
const FOLLOWED_MAX: usize = 16;

pub struct Ctx {
    pub global: Global,
    pub printer: Printer,
    client: OnceCell<Client>,
}

impl Ctx {
    pub fn new(global: Global) -> Self {
        let printer = Printer::new(global.output, global.color, global.quiet);
        Self { global, printer, client: OnceCell::new() }
    }

    /// Made at first use: `completions`, `man`, `explain` and `--help` need none.
    pub fn client(&self) -> Result<&Client, Failure> {
        if self.client.get().is_none() {
            let client = self.make_client()?.project(self.global.project.clone());
            let _ = self.client.set(client);
        }
        Ok(self.client.get().expect("it was set above"))
    }

    fn make_client(&self) -> Result<Client, Failure> {
        let Some(server) = &self.global.server else {
            return Ok(Client::unix(&self.global.socket));
        };
        let token = match (&self.global.token_file, std::env::var("VMKEEP_TOKEN")) {
            (Some(file), _) => Some(read_token(file)?),
            (None, Ok(token)) if !token.is_empty() => Some(token),
            (None, _) => None,
        };
        let ca_file = self.global.ca_file.as_deref();
        match (&self.global.cert_file, &self.global.key_file) {
            (Some(cert), Some(key)) => Ok(Client::https_as(server, Identity { cert, key }, token, ca_file)?),
            _ => Ok(Client::https(server, token, ca_file)?),
        }
    }

    pub fn call(&self, route_id: &str) -> Result<Call<'_>, Failure> {
        Ok(self.client()?.call(route_id))
    }

    /// Sends a change that is carried out by one operation and follows it. `words` finish "would …" in a dry run.
    pub async fn change(&self, words: &str, call: Call<'_>) -> Result<(), Failure> {
        if self.is_rehearsal(words) {
            return Ok(());
        }
        let accepted = call.accepted().await?;
        self.finish(accepted).await.map(drop)
    }

    /// Says what would be done when `--dry-run` is given.
    pub fn is_rehearsal(&self, words: &str) -> bool {
        if self.global.dry_run {
            self.printer.say(&format!("would {words}"));
        }
        self.global.dry_run
    }

    /// Shows warnings and notes, then follows the operation unless `--no-wait`.
    pub async fn finish(&self, accepted: Accepted) -> Result<Operation, Failure> {
        for warning in &accepted.warnings {
            self.printer.warn(warning);
        }
        let operation = self.follow_all(vec![accepted.operation], self.global.timeout).await?.pop().expect("one went in");
        if let Some(note) = &accepted.note {
            self.printer.say(note);
        }
        self.print_operation(&operation)?;
        if operation.state.is_over() && operation.state != OpState::Done {
            return Err(Failure::Operation(Box::new(operation)));
        }
        Ok(operation)
    }

    /// An operation as data, where data is asked for.
    pub fn print_operation(&self, operation: &Operation) -> Result<(), Failure> {
        match self.printer.format {
            Format::Json | Format::Yaml => self.printer.value(operation),
            Format::Name => {
                self.printer.out(operation.resource.name.as_str());
                Ok(())
            }
            Format::Table | Format::Wide => Ok(()),
        }
    }

    /// Follows operations to their end, side by side; gives their last states in the same order. With `--no-wait` they come
    /// back as they are. A failed operation is not an error here. `patience` ends the waiting, not the work.
    pub async fn follow_all(&self, operations: Vec<Operation>, patience: Option<Seconds>) -> Result<Vec<Operation>, Failure> {
        if self.global.no_wait {
            for op in operations.iter().filter(|op| !op.state.is_over()) {
                self.printer.say(&format!("{}: operation {} goes on; see 'vmkeep op show {}'", op.resource.name, op.id, op.id));
            }
            return Ok(operations);
        }
        let ids: Vec<_> = operations.iter().map(|op| op.id).collect();
        let waiting = self.watch_ends(operations);
        let deadline = async {
            match patience {
                Some(limit) => tokio::time::sleep(std::time::Duration::from_secs(limit.get())).await,
                None => std::future::pending().await,
            }
        };
        let ids = ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        tokio::select! {
            done = waiting => done,
            () = deadline => {
                let waited = patience.unwrap_or_default();
                Err(Failure::Error(Error::refused(format!("not over after {waited}; the work goes on")).hint(format!("see 'vmkeep op show {ids}'"))))
            }
            _ = tokio::signal::ctrl_c() => {
                self.printer.say("");
                self.printer.hint(&format!("the work goes on: see 'vmkeep op show {ids}', or stop it with 'vmkeep op cancel {ids}'"));
                Err(Failure::Code(INTERRUPTED))
            }
        }
    }

    async fn watch_ends(&self, operations: Vec<Operation>) -> Result<Vec<Operation>, Failure> {
        let client = self.client()?;
        let board = Board::new(&self.printer);
        let ends = stream::iter(operations).map(|op| {
            let mut track = board.track(&op);
            async move {
                let id = op.id;
                let end = if op.state.is_over() { Ok(op) } else { follow(client, id, &mut |op| track.update(op)).await };
                track.end(end.as_ref().ok());
                end
            }
        });
        let ends: Vec<Result<Operation, Error>> = ends.buffered(FOLLOWED_MAX).collect().await;
        ends.into_iter().map(|end| end.map_err(Failure::from)).collect()
    }

    /// Asks before something is destroyed; without a terminal `--yes` is needed.
    pub fn confirm(&self, question: &str) -> Result<(), Failure> {
        if self.global.yes || self.global.dry_run {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() || !self.printer.err_tty {
            return Err(Failure::usage(format!("there is no terminal to ask on: {question}"), "give --yes to do it without asking"));
        }
        eprint!("{} [y/N] ", escaped(question));
        let _ = std::io::stderr().flush();
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map_err(|e| Failure::io("cannot read the answer", &e))?;
        if matches!(answer.trim(), "y" | "Y" | "yes" | "Yes") {
            return Ok(());
        }
        self.printer.say("nothing was changed");
        Err(Failure::Code(1))
    }
}

fn read_token(file: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(file).map_err(|e| Failure::io(format!("cannot read the token in {}", file.display()), &e))?;
    let token = text.trim();
    if token.is_empty() {
        return Err(Failure::usage(format!("{} is empty", file.display()), "it must hold the secret that 'vmkeep token create' showed"));
    }
    Ok(token.to_owned())
}

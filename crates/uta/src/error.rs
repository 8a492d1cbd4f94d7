//! From an error to an exit status and one line: 2 for what the user can put right himself (usage, recipe, data, a
//! checkpoint), 1 for anything else.

use std::error::Error;
use std::fmt::{Display, Formatter};

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use torch_ext::distributed::DistError;
use uta_data::DataError;
use uta_eval::EvalError;
use uta_model::ModelError;
use uta_train::{RecipeError, TrainError};

/// A mistake of the user's own: one line that says what, where and what to do.
#[derive(Debug)]
pub struct Usage(pub String);

impl Display for Usage {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Usage {}

/// The process's exit status for `error`: 2 or 1, as `docs/src/formats.md` says.
pub fn exit_status(error: &anyhow::Error) -> u8 {
    if error.chain().any(is_users) { 2 } else { 1 }
}

/// clap's answer to a flag that there isn't, with advice that can be followed: no command takes a name that begins with a dash,
/// as clap proposes, and what a recipe says is no flag.
pub fn advised(mut error: clap::Error) -> clap::Error {
    const TAKE_RECIPES: [&str; 4] = ["train", "cache", "plan", "demo"];
    let flag = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
    if error.kind() != ErrorKind::UnknownArgument || !flag.starts_with('-') {
        return error;
    }
    error.remove(ContextKind::Suggested);
    let command = std::env::args().nth(1).unwrap_or_default();
    if TAKE_RECIPES.contains(&command.as_str()) {
        let advice =
            "what a recipe says is set by --set KEY.PATH=VALUE, as in --set train.batch=64";
        let advice = ContextValue::StyledStrs(vec![StyledStr::from(advice)]);
        error.insert(ContextKind::Suggested, advice);
    }
    error
}

/// Clap's message on a wrong command line, in one line with where to read on. `None` where help or a version was asked for,
/// and for `uta` alone, which shows its help.
pub fn command_line(error: &clap::Error, program: clap::Command) -> Option<Usage> {
    let mut command = &program;
    let mut path = vec![command.get_name()];
    for word in std::env::args().skip(1) {
        let Some(part) = command.find_subcommand(word) else { break };
        command = part;
        path.push(command.get_name());
    }
    let parts: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
    let said = match error.kind() {
        _ if !error.use_stderr() => return None,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand if path.len() == 1 => return None,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            format!("{}: give one of {}", path.join(" "), parts.join(", "))
        }
        _ => {
            let text = error.to_string();
            let said = text.split("\n\n").map(str::trim).filter(|part| {
                let aside = ["Usage: ", "For more information"];
                // How a word that begins with a dash is no flag: nobody wants that here.
                !aside.iter().any(|start| part.starts_with(start))
                    && !part.contains(" as a value, use ")
            });
            let said: Vec<&str> = said
                .map(|part| part.trim_start_matches("error: ").trim_start_matches("tip: "))
                .collect();
            said.join("; ")
                .replace("invalid digit found in string", "must be a whole number")
                .replace("invalid float literal", "must be a number")
        }
    };
    Some(Usage(format!("{said}; see `{} --help`", path.join(" "))))
}

/// Whether standard output was closed by what read it, such as `head`: no trouble at all.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    // Only what is printed fails without a word of what and where.
    let printing = error.chain().next().and_then(|error| error.downcast_ref::<std::io::Error>());
    printing.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The words with which libtorch says that a GPU's memory or the machine's isn't enough.
const NO_MEMORY: [&str; 2] = ["out of memory", "can't allocate memory"];

/// `error` with its context as one line. A cause that its effect already quotes isn't said twice.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !line.contains(&cause) {
            line.push_str(if line.is_empty() { "" } else { ": " });
            line.push_str(&cause);
        }
    }
    if NO_MEMORY.iter().any(|words| line.contains(words)) {
        line.push_str(
            "; take fewer images at a time: a larger train.accumulate, a smaller --batch; train.checkpoint_blocks = true \
             keeps less, and `uta plan` tells what a recipe takes",
        );
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether this very error (its causes apart) is the user's to mend. Transparent variants hide the error they carry from
/// the chain, so they are opened here.
fn is_users(error: &(dyn Error + 'static)) -> bool {
    if error.is::<Usage>() || error.is::<RecipeError>() {
        true
    } else if let Some(error) = error.downcast_ref::<DistError>() {
        matches!(error, DistError::Environment(_))
    } else if let Some(error) = error.downcast_ref::<DataError>() {
        match error {
            DataError::Io { source, .. } => is_input(source),
            DataError::Package(_) => false,
            _ => true,
        }
    } else if let Some(error) = error.downcast_ref::<ModelError>() {
        match error {
            ModelError::Io { source, .. } => is_input(source),
            _ => true,
        }
    } else if let Some(error) = error.downcast_ref::<EvalError>() {
        match error {
            EvalError::Data(error) => is_users(error),
            EvalError::Model(error) => is_users(error),
            EvalError::Ranks(error) => is_users(error),
            EvalError::Read { source, .. } => is_input(source),
            EvalError::NonFinite { .. } => false,
            _ => true,
        }
    } else if let Some(error) = error.downcast_ref::<TrainError>() {
        match error {
            TrainError::Recipe(error) => is_users(error),
            TrainError::Data(error) => is_users(error),
            TrainError::Model(error) => is_users(error),
            TrainError::Eval(error) => is_users(error),
            TrainError::Evaluation { source, .. } => is_users(source),
            TrainError::Run { .. } => true,
            TrainError::Io { source, .. } => is_input(source),
            _ => false,
        }
    } else {
        error.downcast_ref().is_some_and(is_input)
    }
}

/// Whether a path was wrong, rather than a machine in trouble.
fn is_input(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::AlreadyExists
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::InvalidData
            | ErrorKind::InvalidInput
            | ErrorKind::InvalidFilename
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, ErrorKind};

    fn of(kind: ErrorKind) -> DataError {
        DataError::io("read", "some/file")(io::Error::from(kind))
    }

    #[test]
    fn mistakes_of_the_user_exit_with_2_however_deep_they_lie() {
        let absent = || of(ErrorKind::NotFound);
        let nested =
            TrainError::Evaluation { name: "zeroshot".into(), source: EvalError::Data(absent()) };
        let mistakes = [
            anyhow::Error::new(Usage("--batch 0: must be 1 or more".into())),
            anyhow::Error::new(absent()).context("opening the set"),
            anyhow::Error::new(io::Error::from(ErrorKind::NotFound)).context("writing a picture"),
            anyhow::Error::new(TrainError::Data(absent())),
            anyhow::Error::new(nested).context("training"),
        ];
        for error in mistakes {
            assert_eq!(exit_status(&error), 2, "{error:#}");
        }
    }

    #[test]
    fn trouble_of_the_machine_exits_with_1() {
        for error in [
            anyhow::Error::new(of(ErrorKind::StorageFull)),
            anyhow::Error::new(TrainError::Torch("out of memory".into())),
            anyhow::anyhow!("anything else"),
        ] {
            assert_eq!(exit_status(&error), 1, "{error:#}");
        }
    }

    #[test]
    fn a_message_is_one_line_and_says_nothing_twice() {
        let error = anyhow::Error::new(of(ErrorKind::NotFound)).context("opening\nthe set");
        let line = one_line(&error);
        assert_eq!(line.matches("entity not found").count(), 1, "{line}");
        assert!(line.starts_with("opening the set: cannot read some/file"), "{line}");
    }
}

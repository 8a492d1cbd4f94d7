//! From an error to an exit status and one line: 2 for what the user can put right himself (usage, recipe, data, a
//! checkpoint), 1 for anything else.

use std::error::Error;
use std::fmt::{Display, Formatter};
use std::io::ErrorKind;

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

/// Whether standard output was closed by what read it, such as `head`: no trouble at all.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    // Only what is printed fails without a word of what and where.
    let printing = error.chain().next().and_then(|error| error.downcast_ref::<std::io::Error>());
    printing.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// How libtorch says that a GPU's memory or the machine's isn't enough.
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
            TrainError::Evaluation { source, .. } => is_users(source.as_ref()),
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
    use std::io;

    fn of(kind: ErrorKind) -> DataError {
        DataError::io("read", "some/file")(io::Error::from(kind))
    }

    #[test]
    fn mistakes_of_the_user_exit_with_2_however_deep_they_lie() {
        let absent = || of(ErrorKind::NotFound);
        let nested = TrainError::Evaluation {
            name: "zeroshot".into(),
            source: Box::new(EvalError::Data(absent())),
        };
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

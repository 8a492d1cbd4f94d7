//! The names that a checkpoint's pickle may mention, in one place: any other is refused.
//!
//! Source of the names: `torch/_utils.py`, `torch/serialization.py`, `torch/csrc/jit/serialization/pickler.cpp`.

use tch::Kind;

/// The names that may occur in a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Global {
    /// `_rebuild_tensor` and its successors: a view of a storage. `typed` where the element type is an argument.
    Rebuild { typed: bool },
    /// `_rebuild_parameter`: its first argument.
    First,
    /// `_rebuild_from_type_v2`: a call of another of these.
    FromType,
    /// A class of storages, or a dtype.
    Element(&'static Element),
    /// A class of dictionaries.
    Dict,
    /// A class whose objects are attribute bags.
    Bag { script: bool },
    /// A class or function that is known to be harmless and whose result holds no weights.
    Inert,
}

/// An element type.
#[derive(Debug, PartialEq)]
pub(super) struct Element {
    /// As torch names its storages.
    pub storage: &'static str,
    dtypes: &'static [&'static str],
    /// Bytes of one.
    pub size: u64,
    /// `None` where it isn't read here.
    pub kind: Option<Kind>,
}

#[rustfmt::skip]
static ELEMENTS: [Element; 19] = [
    Element { storage: "FloatStorage", dtypes: &["float32", "float"], size: 4, kind: Some(Kind::Float) },
    Element { storage: "HalfStorage", dtypes: &["float16", "half"], size: 2, kind: Some(Kind::Half) },
    Element { storage: "BFloat16Storage", dtypes: &["bfloat16"], size: 2, kind: Some(Kind::BFloat16) },
    Element { storage: "DoubleStorage", dtypes: &["float64", "double"], size: 8, kind: Some(Kind::Double) },
    Element { storage: "LongStorage", dtypes: &["int64", "long"], size: 8, kind: Some(Kind::Int64) },
    Element { storage: "IntStorage", dtypes: &["int32", "int"], size: 4, kind: Some(Kind::Int) },
    Element { storage: "ShortStorage", dtypes: &["int16", "short"], size: 2, kind: Some(Kind::Int16) },
    Element { storage: "CharStorage", dtypes: &["int8"], size: 1, kind: Some(Kind::Int8) },
    Element { storage: "ByteStorage", dtypes: &["uint8"], size: 1, kind: Some(Kind::Uint8) },
    Element { storage: "BoolStorage", dtypes: &["bool"], size: 1, kind: Some(Kind::Bool) },
    Element { storage: "ComplexFloatStorage", dtypes: &["complex64", "cfloat"], size: 8, kind: None },
    Element { storage: "ComplexDoubleStorage", dtypes: &["complex128", "cdouble"], size: 16, kind: None },
    Element { storage: "QInt8Storage", dtypes: &["qint8"], size: 1, kind: None },
    Element { storage: "QUInt8Storage", dtypes: &["quint8"], size: 1, kind: None },
    Element { storage: "QInt32Storage", dtypes: &["qint32"], size: 4, kind: None },
    // Of bytes, until the tensor says of what.
    Element { storage: "UntypedStorage", dtypes: &["float8_e4m3fn", "float8_e5m2"], size: 1, kind: None },
    Element { storage: "an unsigned 16-bit type", dtypes: &["uint16"], size: 2, kind: None },
    Element { storage: "an unsigned 32-bit type", dtypes: &["uint32"], size: 4, kind: None },
    Element { storage: "an unsigned 64-bit type", dtypes: &["uint64"], size: 8, kind: None },
];

/// The class of storages of such elements.
pub(super) fn storage_of(kind: Kind) -> Option<&'static str> {
    ELEMENTS.iter().find(|element| element.kind == Some(kind)).map(|element| element.storage)
}

/// The meaning of a name; `None` is refused. This list is all that a checkpoint may mention.
pub(super) fn global(module: &str, name: &str) -> Option<Global> {
    // Python 2 called it so.
    let module = if module == "__builtin__" { "builtins" } else { module };
    // TorchScript's classes: OpenAI's CLIP is such an archive.
    if module == "__torch__" || module.starts_with("__torch__.") {
        return Some(Global::Bag { script: true });
    }
    let element = |found: &dyn Fn(&Element) -> bool| {
        ELEMENTS.iter().find(|element| found(element)).map(Global::Element)
    };
    match (module, name) {
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => {
            Some(Global::Rebuild { typed: false })
        }
        ("torch._utils", "_rebuild_tensor_v3") => Some(Global::Rebuild { typed: true }),
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")
        | (
            "torch.jit._pickle",
            "build_intlist" | "build_doublelist" | "build_boollist" | "build_tensorlist"
            | "restore_type_tag",
        )
        | ("torch", "Size") => Some(Global::First),
        ("torch._tensor", "_rebuild_from_type_v2") => Some(Global::FromType),

        ("collections", "OrderedDict" | "defaultdict" | "Counter")
        | ("builtins", "dict")
        // Settings that trainers keep beside the weights: Detectron's and Swin's, InternVideo's.
        | ("yacs.config", "CfgNode")
        | ("easydict", "EasyDict") => Some(Global::Dict),

        ("argparse", "Namespace")
        | ("types", "SimpleNamespace")
        | ("deepspeed.runtime.fp16.loss_scaler", "LossScaler" | "DynamicLossScaler") => {
            Some(Global::Bag { script: false })
        }

        ("torch", "device" | "Tensor" | "strided")
        | ("torch.nn.parameter", "Parameter" | "Buffer")
        | ("torch.torch_version", "TorchVersion")
        | (
            "builtins",
            "list" | "tuple" | "set" | "frozenset" | "int" | "float" | "bool" | "str" | "bytes"
            | "bytearray" | "complex" | "slice" | "range" | "object",
        )
        | ("collections", "deque")
        | ("pathlib" | "pathlib._local", "Path" | "PosixPath" | "WindowsPath" | "PurePosixPath")
        | ("datetime", "datetime" | "date" | "time" | "timedelta" | "timezone")
        // Best accuracies and the state of random numbers.
        | ("numpy", "dtype" | "ndarray")
        | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar" | "_reconstruct")
        | ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer")
        | ("_codecs", "encode") => Some(Global::Inert),
        ("numpy.dtypes", _) => Some(Global::Inert),

        ("torch" | "torch.cuda" | "torch.storage", _) if name.ends_with("Storage") => {
            element(&|element| element.storage == name)
        }
        ("torch", _) => element(&|element| element.dtypes.contains(&name)),
        _ => None,
    }
}

pub(super) fn refused(module: &str, name: &str) -> String {
    format!(
        "uses {module}.{name}, which is refused: only tensors, containers and numbers are read, and \
         nothing is executed; save the model's state_dict() alone"
    )
}

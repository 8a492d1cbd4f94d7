//! The part of pickle, protocols 2 to 5, that a checkpoint needs. A pickle is a program that may call any function of
//! Python; here each name in it is looked up in [`global`], and one that isn't there ends the reading. Nothing is called.
//!
//! Values lie in one list, [`Nodes`], and refer to each other by their place in it: as in Python a memoised value is
//! shared and not copied, cycles do no harm, and nothing recurses. Work and memory are bounded: see [`Nodes::new`].
//!
//! Source of the format: Python's `Lib/pickletools.py`; of the names: `torch/_utils.py`, `torch/serialization.py`,
//! `torch/csrc/jit/serialization/pickler.cpp`.

use std::collections::HashMap;
use std::io::{BufRead, Read};

use super::globals::{Element, Global, global, refused};

/// The place of a value in [`Nodes`].
pub(super) type Id = u32;

/// Why a pickle isn't read, in words that follow the name of the file.
type Result<T> = std::result::Result<T, String>;

/// Bytes that one operation may cost, generously: a value, its slot in a container, on the stack or in the memo.
const COST: u64 = 128;

/// Bytes of values that are allowed whatever the size of the file.
const SMALL: u64 = 64 << 20;

/// The longest name of a global, in bytes.
const LONGEST_NAME: usize = 1024;

/// The most dimensions of a tensor.
const DIMENSIONS: usize = 64;

/// A value in a pickle.
#[derive(Debug)]
pub(super) enum Node {
    None,
    Bool,
    Int(i64),
    /// An integer of more than 64 bits, its bytes from the lowest.
    Long(Box<[u8]>),
    Text(Box<str>),
    List(Vec<Id>),
    Tuple(Box<[Id]>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Box<Storage>),
    Tensor(Box<View>),
    /// An object of which only the attributes count.
    Bag {
        /// Whether TorchScript wrote it: a module, if it holds tensors.
        script: bool,
        attributes: Option<Id>,
    },
    /// A value of no interest: floats, bytes, sets, and what [`Global::Inert`] gives.
    Opaque,
}

/// A storage: elements in a row, somewhere in the file.
#[derive(Debug)]
pub(super) struct Storage {
    pub element: &'static Element,
    /// Its name in the file, a text.
    pub key: Id,
    /// Elements that it promises.
    pub length: u64,
    /// Its first element among those that are stored under `key`: old files share storages so.
    pub start: u64,
}

/// A tensor: a view of a storage, in elements.
#[derive(Debug)]
pub(super) struct View {
    /// A [`Node::Storage`].
    pub storage: Id,
    pub element: &'static Element,
    pub offset: i64,
    pub size: Vec<i64>,
    pub stride: Vec<i64>,
}

/// A stream, and the bytes that are left of it.
#[derive(Debug)]
pub(super) struct Source<R> {
    pub inner: R,
    pub left: u64,
}

impl<R: BufRead> Source<R> {
    fn bytes(&mut self, count: u64) -> Result<Vec<u8>> {
        if count > self.left {
            return Err(format!(
                "is cut short: its pickle wants {count} bytes of {} that are left",
                self.left
            ));
        }
        // Grows as the bytes come: a compressed file may promise more than it has.
        let mut bytes = Vec::new();
        let found = Read::take(&mut self.inner, count).read_to_end(&mut bytes);
        self.left -= count;
        match found {
            Ok(found) if found as u64 == count => Ok(bytes),
            Ok(_) => Err("is cut short: its pickle ends early".into()),
            Err(e) => Err(format!("can't be read: {e}")),
        }
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        if N as u64 > self.left {
            return Err("is cut short: its pickle ends early".into());
        }
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes).map_err(|e| format!("can't be read: {e}"))?;
        self.left -= N as u64;
        Ok(bytes)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        loop {
            match self.array::<1>()? {
                [b'\n'] => return String::from_utf8(line).map_err(|_| "names no text".into()),
                [byte] if line.len() < LONGEST_NAME => line.push(byte),
                _ => return Err("holds a name of more than 1024 bytes".into()),
            }
        }
    }

    fn text(&mut self, count: u64) -> Result<Box<str>> {
        let text = String::from_utf8(self.bytes(count)?);
        text.map(String::into_boxed_str).map_err(|_| "holds a text that isn't UTF-8".into())
    }
}

/// The values of one or more pickles.
#[derive(Debug)]
pub(super) struct Nodes {
    nodes: Vec<Node>,
    /// Steps that may still be taken.
    steps: u64,
}

impl Nodes {
    /// For a file of `length` bytes. An operation costs a step for every value that it may copy, and steps are rationed,
    /// so that neither a long pickle nor one that repeats itself through its memo takes more memory than the file, or
    /// than 64 MiB if that is more.
    pub fn new(length: u64) -> Nodes {
        let steps = (length.max(SMALL) / COST).min(Id::MAX.into());
        Nodes { nodes: Vec::new(), steps }
    }

    pub fn get(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    pub fn all(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    /// Counts work.
    pub fn spend(&mut self, steps: usize) -> Result<()> {
        let left = self.steps.checked_sub(steps as u64);
        self.steps = left.ok_or("holds too many values for its size")?;
        Ok(())
    }

    /// The entries of a dictionary.
    pub fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.get(id) {
            Node::Dict(entries) => Some(entries),
            _ => None,
        }
    }

    pub fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    fn int(&self, id: Id) -> Option<i64> {
        match self.get(id) {
            Node::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The items of a list or a tuple.
    pub fn items(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Node::List(items) => Some(items),
            Node::Tuple(items) => Some(items),
            _ => None,
        }
    }

    fn ints(&self, id: Id) -> Option<Vec<i64>> {
        let items = self.items(id).filter(|items| items.len() <= DIMENSIONS)?;
        items.iter().map(|&item| self.int(item)).collect()
    }

    fn add(&mut self, node: Node) -> Id {
        // There are no more steps than places, and each adds one value at most.
        let id = self.nodes.len() as Id;
        self.nodes.push(node);
        id
    }

    /// Reads one pickle, up to its end, and gives its value.
    ///
    /// # Errors
    /// In words: where it isn't a pickle, is cut short, or names what isn't known.
    pub fn load<R: BufRead>(&mut self, source: &mut Source<R>) -> Result<Id> {
        let machine =
            Machine { nodes: self, source, stack: vec![], marks: vec![], memo: HashMap::new() };
        machine.run()
    }
}

/// Pickle's stack machine.
struct Machine<'a, R> {
    nodes: &'a mut Nodes,
    source: &'a mut Source<R>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<R: BufRead> Machine<'_, R> {
    fn run(mut self) -> Result<Id> {
        loop {
            self.nodes.spend(1)?;
            let [operation] = self.source.array()?;
            match operation {
                b'.' => return self.pop(),
                // PROTO, FRAME.
                0x80 => match self.byte()? {
                    2..=5 => {}
                    other => return Err(format!("is a pickle of protocol {other}, not 2 to 5")),
                },
                0x95 => drop(self.source.array::<8>()?),

                b'(' => self.marks.push(self.stack.len()),
                b'0' if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_mark()?),
                b'2' => self.stack.push(self.top()?),

                b'N' => self.push(Node::None)?,
                0x88 | 0x89 => self.push(Node::Bool)?,
                b'J' => {
                    let value = i32::from_le_bytes(self.source.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                b'K' => {
                    let value = self.byte()?;
                    self.push(Node::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.source.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                0x8a => {
                    let count = self.byte()?;
                    self.long(count.into())?;
                }
                0x8b => {
                    let count = self.u32()?;
                    self.long(count)?;
                }
                b'G' => {
                    self.source.array::<8>()?;
                    self.push(Node::Opaque)?;
                }

                b'X' | b'T' => {
                    let count = self.u32()?;
                    self.string(count, operation == b'T')?;
                }
                0x8c | b'U' => {
                    let count = self.byte()?;
                    self.string(count.into(), operation == b'U')?;
                }
                0x8d => {
                    let count = u64::from_le_bytes(self.source.array()?);
                    self.string(count, false)?;
                }
                b'B' => {
                    let count = self.u32()?;
                    self.ignored(count)?;
                }
                b'C' => {
                    let count = self.byte()?;
                    self.ignored(count.into())?;
                }
                0x8e | 0x96 => {
                    let count = u64::from_le_bytes(self.source.array()?);
                    self.ignored(count)?;
                }

                b']' => self.push(Node::List(vec![]))?,
                b'l' => {
                    let items = self.pop_mark()?;
                    self.push(Node::List(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_mark()?;
                    self.append(items)?;
                }
                b')' => self.push(Node::Tuple(Box::new([])))?,
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(Node::Tuple(items.into()))?;
                }
                0x85..=0x87 => {
                    let mut items = Vec::new();
                    for _ in 0x85..=operation {
                        items.insert(0, self.pop()?);
                    }
                    self.push(Node::Tuple(items.into()))?;
                }
                b'}' => self.push(Node::Dict(vec![]))?,
                b'd' => {
                    let items = self.pop_mark()?;
                    self.push(Node::Dict(vec![]))?;
                    self.set_items(&items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set_items(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.set_items(&items)?;
                }
                // Sets: EMPTY_SET, ADDITEMS, FROZENSET.
                0x8f => self.push(Node::Opaque)?,
                0x90 => drop(self.pop_mark()?),
                0x91 => {
                    self.pop_mark()?;
                    self.push(Node::Opaque)?;
                }

                b'h' => {
                    let index = self.byte()?;
                    self.recall(index.into())?;
                }
                b'j' => {
                    let index = u32::from_le_bytes(self.source.array()?);
                    self.recall(index)?;
                }
                b'q' => {
                    let index = self.byte()?;
                    self.memo.insert(index.into(), self.top()?);
                }
                b'r' => {
                    let index = u32::from_le_bytes(self.source.array()?);
                    self.memo.insert(index, self.top()?);
                }
                0x94 => drop(self.memo.insert(self.memo.len() as u32, self.top()?)),

                b'c' => {
                    let module = self.source.line()?;
                    let name = self.source.line()?;
                    self.global(&module, &name)?;
                }
                0x93 => {
                    let name = self.pop()?;
                    let module = self.pop()?;
                    let (Some(module), Some(name)) =
                        (self.nodes.text(module), self.nodes.text(name))
                    else {
                        return Err("names a global by what is no text".into());
                    };
                    let module = module.to_owned();
                    let name = name.to_owned();
                    self.global(&module, &name)?;
                }
                b'i' => {
                    let module = self.source.line()?;
                    let name = self.source.line()?;
                    return Err(refused(&module, &name));
                }
                b'R' => {
                    let arguments = self.pop()?;
                    let function = self.pop()?;
                    self.reduce(function, arguments)?;
                }
                0x81 => {
                    let arguments = self.pop()?;
                    let class = self.pop()?;
                    self.reduce(class, arguments)?;
                }
                0x92 => {
                    let _keywords = self.pop()?;
                    let arguments = self.pop()?;
                    let class = self.pop()?;
                    self.reduce(class, arguments)?;
                }
                b'b' => {
                    let state = self.pop()?;
                    self.build(state)?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    let storage = self.storage(id).ok_or("refers to what is no storage")?;
                    self.push(Node::Storage(Box::new(storage)))?;
                }
                other => {
                    return Err(format!(
                        "is no pickle of a checkpoint: operation {other:#04x}, {} bytes before \
                         its end",
                        self.source.left
                    ));
                }
            }
        }
    }

    fn byte(&mut self) -> Result<u8> {
        self.source.array().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u64> {
        self.source.array().map(|bytes| u32::from_le_bytes(bytes).into())
    }

    fn push(&mut self, node: Node) -> Result<()> {
        let id = self.nodes.add(node);
        self.stack.push(id);
        Ok(())
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().ok_or_else(|| "uses an empty stack".into())
    }

    fn pop(&mut self) -> Result<Id> {
        // Values below a mark belong to an outer operation.
        if self.marks.last().is_some_and(|&mark| mark >= self.stack.len()) {
            return Err("takes what lies below its mark".into());
        }
        self.stack.pop().ok_or_else(|| "uses an empty stack".into())
    }

    /// Takes the values above the last mark.
    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or("uses a mark that isn't there")?;
        Ok(self.stack.split_off(mark))
    }

    fn recall(&mut self, index: u32) -> Result<()> {
        let id = self.memo.get(&index);
        self.stack.push(*id.ok_or_else(|| format!("recalls value {index}, which isn't there"))?);
        Ok(())
    }

    fn long(&mut self, count: u64) -> Result<()> {
        let bytes = self.source.bytes(count)?;
        let node = if bytes.len() > 8 {
            Node::Long(bytes.into())
        } else {
            let sign = if bytes.last().is_some_and(|&last| last >= 0x80) { 0xff } else { 0 };
            let mut whole = [sign; 8];
            whole[..bytes.len()].copy_from_slice(&bytes);
            Node::Int(i64::from_le_bytes(whole))
        };
        self.push(node)
    }

    /// Texts; the strings of Python 2 are either texts or bytes.
    fn string(&mut self, count: u64, python2: bool) -> Result<()> {
        if !python2 {
            let text = self.source.text(count)?;
            return self.push(Node::Text(text));
        }
        let text = String::from_utf8(self.source.bytes(count)?);
        self.push(text.map_or(Node::Opaque, |text| Node::Text(text.into())))
    }

    fn ignored(&mut self, count: u64) -> Result<()> {
        self.source.bytes(count)?;
        self.push(Node::Opaque)
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let id = self.top()?;
        match &mut self.nodes.nodes[id as usize] {
            Node::List(list) => list.extend(items),
            Node::Opaque => {}
            _ => return Err("appends to what is no list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<()> {
        let id = self.top()?;
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err("sets a key without a value".into());
        };
        match &mut self.nodes.nodes[id as usize] {
            Node::Dict(entries) => entries.extend(pairs.iter().map(|&[key, value]| (key, value))),
            Node::Opaque | Node::Bag { .. } => {}
            _ => return Err("sets items of what is no dictionary".into()),
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        let known = global(module, name).ok_or_else(|| refused(module, name))?;
        self.push(Node::Global(known))
    }

    /// Calls a known name.
    fn reduce(&mut self, function: Id, arguments: Id) -> Result<()> {
        let Node::Global(function) = *self.nodes.get(function) else {
            return Err("calls what is no known function".into());
        };
        if !matches!(self.nodes.get(arguments), Node::Tuple(_)) {
            return Err("calls a function with what are no arguments".into());
        }
        self.call(function, arguments)
    }

    fn call(&mut self, function: Global, arguments: Id) -> Result<()> {
        let items = self.nodes.items(arguments).unwrap_or_default();
        let node = match function {
            Global::Rebuild { typed } => {
                let view = self.view(typed, items).ok_or("rebuilds what is no tensor")?;
                self.nodes.spend(view.size.len())?;
                Node::Tensor(Box::new(view))
            }
            Global::First => {
                let first = *items.first().ok_or("calls a function without its arguments")?;
                self.stack.push(first);
                return Ok(());
            }
            Global::FromType => {
                // Function, class, arguments, attributes.
                if let &[function, _, arguments, ..] = items
                    && let Node::Global(function) = *self.nodes.get(function)
                    && matches!(function, Global::Rebuild { .. } | Global::First)
                    && matches!(self.nodes.get(arguments), Node::Tuple(_))
                {
                    return self.call(function, arguments);
                }
                return Err("rebuilds what is no tensor".into());
            }
            Global::Dict => {
                // `OrderedDict([(key, value), ...])`, `Counter({...})`, `defaultdict(factory)`.
                let entries: Vec<(Id, Id)> = match items.first().map(|&first| self.nodes.get(first))
                {
                    Some(Node::Dict(entries)) => entries.clone(),
                    Some(Node::List(pairs)) => {
                        let pair = |&pair: &Id| match self.nodes.items(pair) {
                            Some(&[key, value]) => Some((key, value)),
                            _ => None,
                        };
                        let entries: Option<_> = pairs.iter().map(pair).collect();
                        entries.ok_or("makes a dictionary of what are no pairs")?
                    }
                    _ => Vec::new(),
                };
                self.nodes.spend(entries.len())?;
                Node::Dict(entries)
            }
            Global::Bag { script } => Node::Bag { script, attributes: None },
            Global::Inert => Node::Opaque,
            Global::Element(_) => return Err("makes a storage without its bytes".into()),
        };
        self.push(node)
    }

    /// `(storage, offset, size, stride[, requires_grad, hooks[, dtype]])`.
    fn view(&self, typed: bool, arguments: &[Id]) -> Option<View> {
        let &[storage, offset, size, stride, ..] = arguments else { return None };
        let Node::Storage(of) = self.nodes.get(storage) else { return None };
        let element = if typed {
            match self.nodes.get(*arguments.get(6)?) {
                Node::Global(Global::Element(element)) => element,
                _ => return None,
            }
        } else {
            of.element
        };
        let offset = self.nodes.int(offset)?;
        let size = self.nodes.ints(size)?;
        let stride = self.nodes.ints(stride)?;
        (size.len() == stride.len()).then_some(View { storage, element, offset, size, stride })
    }

    /// `("storage", class, key, location, elements[, (key, offset, elements) of a part])`.
    fn storage(&self, id: Id) -> Option<Storage> {
        let Node::Tuple(items) = self.nodes.get(id) else { return None };
        let &[tag, class, key, _location, length, ref part @ ..] = &**items else { return None };
        let Node::Global(Global::Element(element)) = *self.nodes.get(class) else { return None };
        let mut start = 0;
        let mut length = u64::try_from(self.nodes.int(length)?).ok()?;
        match part {
            [] => {}
            &[part] if matches!(self.nodes.get(part), Node::None) => {}
            &[part] => {
                let &[_, offset, elements] = self.nodes.items(part)? else { return None };
                start = u64::try_from(self.nodes.int(offset)?).ok()?;
                let elements = u64::try_from(self.nodes.int(elements)?).ok()?;
                length =
                    start.checked_add(elements).filter(|&end| end <= length).map(|_| elements)?;
            }
            _ => return None,
        }
        self.nodes.text(key)?;
        (self.nodes.text(tag)? == "storage").then_some(Storage { element, key, length, start })
    }

    /// Gives the object on the stack its attributes.
    fn build(&mut self, state: Id) -> Result<()> {
        let id = self.top()?;
        let is_dict = self.nodes.dict(state).is_some();
        match &mut self.nodes.nodes[id as usize] {
            Node::Bag { attributes, .. } if is_dict => *attributes = Some(state),
            // Attributes of a dictionary, as `_metadata`; the state of what is of no interest.
            Node::Bag { .. } | Node::Dict(_) | Node::Opaque => {}
            _ => return Err("sets the state of what is no object".into()),
        }
        Ok(())
    }
}

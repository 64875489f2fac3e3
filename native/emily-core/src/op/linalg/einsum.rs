//! Einstein summation.

use crate::build::{Arrays, Build, Describe};
use crate::check;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::elementwise::check_countable;
use crate::op::graph::{input, Graph};
use crate::op::integer::promote;
use crate::op::{Einsum, Inputs};
use mlx_rs::Array;
use std::collections::BTreeMap;
use std::ffi::CString;

const OP: &str = "Einsum";

/// MLX makes room for the letters that an equation leaves, of 52, and takes its comma and arrow for
/// letters too.
const MAX_LETTERS: usize = 49;

/// The sum of products that an equation such as `"bij,bjk->bik"` says: a letter for each axis, one
/// list an input; `...` stands for any axes, which broadcast. Without `->` the result has the
/// letters that stand once, in alphabetical order. Refused: an equation that is not of this form, does
/// not fit the inputs' ranks and sizes, or has a result letter twice or from nowhere.
pub(crate) fn einsum(build: &Build, attrs: &Einsum, inputs: Inputs) -> Result<Array> {
    let operands: Vec<&Array> =
        (0..inputs.len()).map(|index| input(OP, inputs, index)).collect::<Result<_>>()?;
    let equation = Equation::parse(&attrs.equation, &operands)?;
    let shape = equation.result_shape(build)?;
    let graph = Graph::new(build, OP);
    if operands.iter().any(|operand| operand.count() == 0) {
        let dtype = operands.iter().map(|operand| operand.dtype_of()).reduce(promote);
        return graph.zeros(&shape, dtype.unwrap_or(Dtype::Float32));
    }
    let text = CString::new(equation.text)
        .map_err(|_| Error::argument(OP, "equation", "letters", &attrs.equation))?;
    let operands = Arrays::from_iter(operands);
    // SAFETY: the vector is live and the text ends in NUL.
    graph.call(|res, s| unsafe { mlx_sys::mlx_einsum(res, text.as_ptr(), operands.as_raw(), s) })
}

/// An equation that fits its operands, with its ellipses written out: MLX reads letters from beyond
/// its list of unused ones when an ellipsis is too long, and takes a result letter from nowhere for
/// the first axis.
struct Equation {
    text: String,
    result: Vec<char>,
    sizes: BTreeMap<char, i32>,
}

impl Equation {
    fn parse(text: &str, operands: &[&Array]) -> Result<Self> {
        let wrong = |expected: String| Error::argument(OP, "equation", expected, text);
        let compact: String = text.chars().filter(|c| *c != ' ').collect();
        let (left, right) = match compact.split_once("->") {
            Some((left, right)) => (left, Some(right)),
            None => (compact.as_str(), None),
        };
        let terms: Vec<Term> = left
            .split(',')
            .map(Term::parse)
            .collect::<Option<_>>()
            .ok_or_else(|| wrong("letters, one ellipsis a list, commas and an arrow".into()))?;
        if terms.len() != operands.len() {
            return Err(wrong(format!(
                "one list of letters for each of {} inputs",
                operands.len()
            )));
        }
        let mut hidden = 0;
        for (term, operand) in terms.iter().zip(operands) {
            let rest = operand.rank().checked_sub(term.letters());
            match rest {
                Some(0) => {}
                Some(rest) if term.ellipsis => hidden = rest.max(hidden),
                _ => return Err(wrong(format!("{} letters for {term:?}", operand.rank()))),
            }
        }
        // Letters for the axes of the longest ellipsis; a shorter one stands for the last of them.
        let unused: Vec<char> =
            ('a'..='z').chain('A'..='Z').filter(|&c| !compact.contains(c)).take(hidden).collect();
        let mut sizes = BTreeMap::new();
        let mut written = Vec::with_capacity(terms.len());
        for (term, operand) in terms.iter().zip(operands) {
            let hidden = unused.len().saturating_sub(term.hidden(operand.rank()));
            let letters = term.expanded(&unused[hidden..]);
            for (index, (&letter, &size)) in letters.iter().zip(operand.shape_of()).enumerate() {
                let before = letters[..index].iter().position(|&other| other == letter);
                let common = sizes.entry(letter).or_insert(size);
                let differs = before.is_some_and(|axis| operand.shape_of()[axis] != size)
                    || size != 1 && *common != 1 && *common != size;
                if differs {
                    return Err(wrong(format!("one size for {letter:?}, not {common} and {size}")));
                }
                if *common == 1 {
                    *common = size;
                }
            }
            written.push(letters.into_iter().collect::<String>());
        }
        if unused.len() < hidden || sizes.len() > MAX_LETTERS {
            let expected = "letters with those that ellipses stand for";
            return Err(wrong(format!("at most {MAX_LETTERS} {expected}")));
        }
        let result = match right {
            Some(right) => Term::parse(right)
                .ok_or_else(|| wrong("letters and at most one ellipsis as the result".into()))?
                .expanded(&unused),
            None => implicit_result(&terms, &unused),
        };
        let twice = (1..result.len()).any(|index| result[..index].contains(&result[index]));
        if twice || result.iter().any(|letter| !sizes.contains_key(letter)) {
            return Err(wrong("a result of letters of the inputs, each once".into()));
        }
        let text = format!("{}->{}", written.join(","), result.iter().collect::<String>());
        Ok(Equation { text, result, sizes })
    }

    fn result_shape(&self, build: &Build) -> Result<Vec<i32>> {
        let shape: Vec<i64> = self.result.iter().map(|letter| self.sizes[letter].into()).collect();
        check_countable(build, OP, shape.iter().map(|&size| i128::from(size)).product())?;
        check::shape(OP, &shape, Dtype::Complex64)
    }
}

/// Letters that stand once, in alphabetical order, behind the axes of ellipses.
fn implicit_result(terms: &[Term], unused: &[char]) -> Vec<char> {
    let mut counts = BTreeMap::new();
    for letter in terms.iter().flat_map(|term| term.before.iter().chain(&term.behind)) {
        *counts.entry(*letter).or_insert(0) += 1;
    }
    let once = counts.into_iter().filter(|&(_, count)| count == 1).map(|(letter, _)| letter);
    unused.iter().copied().chain(once).collect()
}

/// The letters of one tensor's axes.
#[derive(Debug)]
struct Term {
    before: Vec<char>,
    ellipsis: bool,
    behind: Vec<char>,
}

impl Term {
    fn parse(text: &str) -> Option<Self> {
        let (before, behind) = text.split_once("...").unwrap_or((text, ""));
        let letters = |text: &str| -> Option<Vec<char>> {
            text.chars().map(|c| c.is_ascii_alphabetic().then_some(c)).collect()
        };
        Some(Term {
            ellipsis: text.contains("..."),
            before: letters(before)?,
            behind: letters(behind)?,
        })
    }

    fn letters(&self) -> usize {
        self.before.len() + self.behind.len()
    }

    /// How many axes of a tensor the ellipsis stands for.
    fn hidden(&self, rank: usize) -> usize {
        if self.ellipsis {
            rank - self.letters()
        } else {
            0
        }
    }

    fn expanded(&self, hidden: &[char]) -> Vec<char> {
        let hidden = if self.ellipsis { hidden } else { &[] };
        [&self.before, hidden, &self.behind].concat()
    }
}

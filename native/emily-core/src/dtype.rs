//! The element types, their names and sizes.

use mlx_sys::mlx_dtype;

macro_rules! dtypes {
    ($($(#[$doc:meta])* $name:ident: $mlx:ident, $kind:literal, $bits:literal, $size:literal;)*) => {
        /// The type of a tensor's elements. The wire form is Nx's `{kind, bits}`, with `{:pred, 1}`
        /// for booleans, whose elements take one byte.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Dtype { $($(#[$doc])* $name,)* }

        impl Dtype {
            /// Every dtype.
            pub const ALL: &'static [Dtype] = &[$(Dtype::$name,)*];

            /// The kind of its Nx type: `f`, `bf`, `c`, `s`, `u` or `pred`.
            pub fn kind(self) -> &'static str {
                match self { $(Dtype::$name => $kind,)* }
            }

            /// The bits of its Nx type; a complex number counts both parts.
            pub fn bits(self) -> u32 {
                match self { $(Dtype::$name => $bits,)* }
            }

            /// Bytes of one element.
            pub fn size(self) -> usize {
                match self { $(Dtype::$name => $size,)* }
            }

            pub(crate) fn to_mlx(self) -> mlx_dtype {
                match self { $(Dtype::$name => mlx_sys::$mlx,)* }
            }

            pub(crate) fn from_mlx(dtype: mlx_dtype) -> Self {
                match dtype {
                    $(mlx_sys::$mlx => Dtype::$name,)*
                    // MLX 0.32.2 has the 14 dtypes of the table, and its version is pinned.
                    other => unreachable!("mlx dtype {other}"),
                }
            }
        }
    };
}

dtypes! {
    /// A truth value.
    Bool: mlx_dtype__MLX_BOOL, "pred", 1, 1;
    /// Unsigned, 8 bits.
    Uint8: mlx_dtype__MLX_UINT8, "u", 8, 1;
    /// Unsigned, 16 bits.
    Uint16: mlx_dtype__MLX_UINT16, "u", 16, 2;
    /// Unsigned, 32 bits.
    Uint32: mlx_dtype__MLX_UINT32, "u", 32, 4;
    /// Unsigned, 64 bits.
    Uint64: mlx_dtype__MLX_UINT64, "u", 64, 8;
    /// Signed, 8 bits.
    Int8: mlx_dtype__MLX_INT8, "s", 8, 1;
    /// Signed, 16 bits.
    Int16: mlx_dtype__MLX_INT16, "s", 16, 2;
    /// Signed, 32 bits.
    Int32: mlx_dtype__MLX_INT32, "s", 32, 4;
    /// Signed, 64 bits.
    Int64: mlx_dtype__MLX_INT64, "s", 64, 8;
    /// IEEE 754 half precision.
    Float16: mlx_dtype__MLX_FLOAT16, "f", 16, 2;
    /// The upper half of a single.
    Bfloat16: mlx_dtype__MLX_BFLOAT16, "bf", 16, 2;
    /// IEEE 754 single precision.
    Float32: mlx_dtype__MLX_FLOAT32, "f", 32, 4;
    /// IEEE 754 double precision; CPU streams only.
    Float64: mlx_dtype__MLX_FLOAT64, "f", 64, 8;
    /// Two singles.
    Complex64: mlx_dtype__MLX_COMPLEX64, "c", 64, 8;
}

impl Dtype {
    /// The dtype with an Nx type's kind and bits.
    pub fn from_kind(kind: &str, bits: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|dtype| dtype.kind() == kind && dtype.bits() == bits)
    }

    /// Whether it is a real float.
    pub fn is_float(self) -> bool {
        matches!(self.kind(), "f" | "bf")
    }

    /// Whether it is a float or complex.
    pub fn is_inexact(self) -> bool {
        self.is_float() || self == Dtype::Complex64
    }

    /// Whether it is a signed integer.
    pub fn is_signed_integer(self) -> bool {
        self.kind() == "s"
    }

    /// Whether it is an integer, signed or not; a boolean is none.
    pub fn is_integer(self) -> bool {
        matches!(self.kind(), "s" | "u")
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{{:{}, {}}}", self.kind(), self.bits())
    }
}

#[cfg(feature = "nif")]
mod wire {
    use super::Dtype;
    use rustler::types::tuple::get_tuple;
    use rustler::{Atom, Decoder, Encoder, Env, Error, NifResult, Term};

    impl Encoder for Dtype {
        fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
            let kind = Atom::from_str(env, self.kind()).expect("kinds are short ASCII words");
            (kind, self.bits()).encode(env)
        }
    }

    impl<'a> Decoder<'a> for Dtype {
        fn decode(term: Term<'a>) -> NifResult<Self> {
            let parts = get_tuple(term)?;
            let [kind, bits] = parts[..] else { return Err(Error::BadArg) };
            let unsupported = || Error::Term(Box::new(format!("unsupported dtype {term:?}")));
            let bits = bits.decode().map_err(|_| unsupported())?;
            let kind = kind.atom_to_string().map_err(|_| unsupported())?;
            Dtype::from_kind(&kind, bits).ok_or_else(unsupported)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_survives_both_of_its_names() {
        for &dtype in Dtype::ALL {
            assert_eq!(Dtype::from_mlx(dtype.to_mlx()), dtype);
            assert_eq!(Dtype::from_kind(dtype.kind(), dtype.bits()), Some(dtype));
            // SAFETY: a pure function of the enum's value.
            assert_eq!(unsafe { mlx_sys::mlx_dtype_size(dtype.to_mlx()) }, dtype.size());
        }
        assert_eq!(Dtype::from_kind("s", 4), None);
    }
}

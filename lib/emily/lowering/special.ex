defmodule Emily.Lowering.Special do
  @moduledoc false

  # Functions that MLX has not, or has for f64 in single precision only (exp, sin, cos, erf and
  # what rests on them): composed from those that it computes in full. Functions take and return
  # handles; without a type they are for f64.

  import Emily.Emitter, only: [emit: 3, scalar: 3]
  import Emily.Lowering.Type, only: [astype: 3, is_small_float: 1]

  @f64 {:f, 64}

  # expm1 is exact and of the same magnitude for positive numbers; for negative ones it loses the
  # digits that count.
  def exp(e, x) do
    positive = emit(e, :add, [emit(e, :expm1, [emit(e, :abs, [x])]), number(e, 1.0)])
    negative = emit(e, :less, [x, number(e, 0.0)])
    power = emit(e, :where, [negative, emit(e, :reciprocal, [positive]), positive])
    emit(e, :where, [emit(e, :isnan, [x]), x, power])
  end

  def sigmoid(e, x) do
    power = exp(e, emit(e, :negative, [x]))
    emit(e, :reciprocal, [emit(e, :add, [power, number(e, 1.0)])])
  end

  # Sine and cosine after fdlibm: the argument less the nearest multiple of pi/2, as a number and
  # its rounding error, then a polynomial. Beyond a million the multiple has no exact product with
  # pi/2's leading bits, and the tangent of the half angle serves, which MLX reduces by itself.
  @reducible 1.0e6
  @pi_half_leading 1.57079632673412561417
  @pi_half_rest 6.07710050650619224932e-11

  @sine [
    8.33333333332248946124e-03,
    -1.98412698298579493134e-04,
    2.75573137070700676789e-06,
    -2.50507602534068634195e-08,
    1.58969099521155010221e-10
  ]
  @sine_cubic -1.66666666666666324348e-01
  @cosine [
    4.16666666666666019037e-02,
    -1.38888888888741095749e-03,
    2.48015872894767294178e-05,
    -2.75573143513906633035e-07,
    2.08757232129817482790e-09,
    -1.13596475577881948265e-11
  ]

  def sin(e, x) do
    {t, square} = half_angle(e, x)
    large = emit(e, :divide, [emit(e, :add, [t, t]), emit(e, :add, [square, number(e, 1.0)])])
    circular(e, x, 0.0, large)
  end

  def cos(e, x) do
    {_t, square} = half_angle(e, x)
    one = number(e, 1.0)
    large = emit(e, :divide, [emit(e, :subtract, [one, square]), emit(e, :add, [square, one])])
    circular(e, x, 1.0, large)
  end

  defp half_angle(e, x) do
    t = emit(e, :tan, [emit(e, :multiply, [x, number(e, 0.5)])])
    {t, emit(e, :square, [t])}
  end

  # `ahead` is 1 for the cosine, which is a quarter of a turn ahead of the sine.
  defp circular(e, x, ahead, large) do
    multiply = &emit(e, :multiply, [&1, &2])
    add = &emit(e, :add, [&1, &2])
    subtract = &emit(e, :subtract, [&1, &2])

    reducible = below(e, emit(e, :abs, [x]), @reducible)
    small = emit(e, :where, [reducible, x, number(e, 0.0)])
    turns = emit(e, {:round, %{decimals: 0}}, [multiply.(small, number(e, 2 / :math.pi()))])
    leading = subtract.(small, multiply.(turns, number(e, @pi_half_leading)))
    rest = multiply.(turns, number(e, @pi_half_rest))
    y = subtract.(leading, rest)
    error = subtract.(subtract.(leading, y), rest)

    square = emit(e, :square, [y])
    half = number(e, 0.5)

    # y - ((y^2 (error / 2 - y^3 r) - error) - y^3 S1)
    cube = multiply.(square, y)
    inner = subtract.(multiply.(error, half), multiply.(cube, polynomial(e, square, @sine, @f64)))
    inner = subtract.(multiply.(square, inner), error)
    sine = subtract.(y, subtract.(inner, multiply.(cube, number(e, @sine_cubic))))

    # (1 - y^2/2) and what its rounding lost, plus y^4 r - y error
    one = number(e, 1.0)
    halved = multiply.(square, half)
    main = subtract.(one, halved)
    series = multiply.(square, polynomial(e, square, @cosine, @f64))
    fine = subtract.(multiply.(square, series), multiply.(y, error))
    cosine = add.(main, add.(subtract.(subtract.(one, main), halved), fine))

    # The quadrant chooses the polynomial and the sign.
    quadrant = emit(e, :remainder, [add.(turns, number(e, ahead)), number(e, 4.0)])
    odd = emit(e, :equal, [emit(e, :remainder, [quadrant, number(e, 2.0)]), one])
    value = emit(e, :where, [odd, cosine, sine])
    flipped = emit(e, :greater_equal, [quadrant, number(e, 2.0)])
    value = emit(e, :where, [flipped, emit(e, :negative, [value]), value])
    emit(e, :where, [reducible, value, large])
  end

  # Rational approximations of erf in four intervals; the table and its error bound below 1 ulp
  # are those of fdlibm's s_erf.c.
  @near_zero {[
                1.28379167095512558561e-01,
                -3.25042107247001499370e-01,
                -2.84817495755985104766e-02,
                -5.77027029648944159157e-03,
                -2.37630166566501626084e-05
              ],
              [
                1.0,
                3.97917223959155352819e-01,
                6.50222499887672944485e-02,
                5.08130628187576562776e-03,
                1.32494738004321644526e-04,
                -3.96022827877536812320e-06
              ]}
  @near_one {[
               -2.36211856075265944077e-03,
               4.14856118683748331666e-01,
               -3.72207876035701323847e-01,
               3.18346619901161753674e-01,
               -1.10894694282396677476e-01,
               3.54783043256182359371e-02,
               -2.16637559486879084300e-03
             ],
             [
               1.0,
               1.06420880400844228286e-01,
               5.40397917702171048937e-01,
               7.18286544141962662868e-02,
               1.26171219808761642112e-01,
               1.36370839120290507362e-02,
               1.19844998467991074170e-02
             ]}
  @middle {[
             -9.86494403484714822705e-03,
             -6.93858572707181764372e-01,
             -1.05586262253232909814e+01,
             -6.23753324503260060396e+01,
             -1.62396669462573470355e+02,
             -1.84605092906711035994e+02,
             -8.12874355063065934246e+01,
             -9.81432934416914548592e+00
           ],
           [
             1.0,
             1.96512716674392571292e+01,
             1.37657754143519042600e+02,
             4.34565877475229228821e+02,
             6.45387271733267880336e+02,
             4.29008140027567833386e+02,
             1.08635005541779435134e+02,
             6.57024977031928170135e+00,
             -6.04244152148580987438e-02
           ]}
  @far {[
          -9.86494292470009928597e-03,
          -7.99283237680523006574e-01,
          -1.77579549177547519889e+01,
          -1.60636384855821916062e+02,
          -6.37566443368389627722e+02,
          -1.02509513161107724954e+03,
          -4.83519191608651397019e+02
        ],
        [
          1.0,
          3.03380607434824582924e+01,
          3.25792512996573918826e+02,
          1.53672958608443695994e+03,
          3.19985821950859553908e+03,
          2.55305040643316442583e+03,
          4.74528541206955367215e+02,
          -2.24409524465858183362e+01
        ]}
  @erf_of_one 8.45062911510467529297e-01

  def erf(e, x) do
    small = emit(e, :multiply, [x, emit(e, :add, [number(e, 1.0), near_zero(e, x)])])
    magnitude = emit(e, :abs, [x])
    rest = emit(e, :subtract, [number(e, 1.0), complement(e, magnitude)])
    large = emit(e, :multiply, [emit(e, :sign, [x]), rest])
    value = emit(e, :where, [below(e, magnitude, 0.84375), small, large])
    emit(e, :where, [emit(e, :isnan, [x]), x, value])
  end

  @doc "1 - erf, without the loss of digits where erf is near 1."
  def erfc(e, x, @f64) do
    one = number(e, 1.0)
    erf_small = emit(e, :multiply, [x, emit(e, :add, [one, near_zero(e, x)])])
    magnitude = emit(e, :abs, [x])
    positive = complement(e, magnitude)
    negative = emit(e, :subtract, [number(e, 2.0), positive])
    large = emit(e, :where, [below(e, x, 0.0), negative, positive])
    small = emit(e, :subtract, [one, erf_small])
    value = emit(e, :where, [below(e, magnitude, 0.84375), small, large])
    emit(e, :where, [emit(e, :isnan, [x]), x, value])
  end

  def erfc(e, x, type) when is_small_float(type) do
    e |> erfc(astype(e, x, {:f, 32}), {:f, 32}) |> then(&astype(e, &1, type))
  end

  # A Chebyshev fit with a relative error below 1.2e-7 everywhere (Numerical Recipes, 6.2).
  @chebyshev [
    -1.26551223,
    1.00002368,
    0.37409196,
    0.09678418,
    -0.18628806,
    0.27886807,
    -1.13520398,
    1.48851587,
    -0.82215223,
    0.17087277
  ]

  def erfc(e, x, type) do
    constant = &scalar(e, &1, type)
    magnitude = emit(e, :abs, [x])
    half = emit(e, :multiply, [magnitude, constant.(0.5)])
    t = emit(e, :reciprocal, [emit(e, :add, [half, constant.(1.0)])])
    series = polynomial(e, t, @chebyshev, type)
    exponent = emit(e, :subtract, [series, emit(e, :square, [magnitude])])
    positive = emit(e, :multiply, [t, emit(e, :exp, [exponent])])
    negative = emit(e, :subtract, [constant.(2.0), positive])
    large = emit(e, :where, [emit(e, :less, [x, constant.(0.0)]), negative, positive])
    small = emit(e, :subtract, [constant.(1.0), emit(e, :erf, [x])])
    near = emit(e, :less, [magnitude, constant.(0.5)])
    emit(e, :where, [near, small, large])
  end

  # MLX's value in single precision, then Newton's method twice.
  def erf_inv(e, x) do
    start = emit(e, :erfinv, [x])

    refined =
      for _ <- 1..2, reduce: start do
        y ->
          error = emit(e, :subtract, [erf(e, y), x])
          slope = exp(e, emit(e, :square, [y]))

          step =
            emit(e, :multiply, [
              error,
              emit(e, :multiply, [slope, number(e, :math.sqrt(:math.pi()) / 2)])
            ])

          emit(e, :subtract, [y, step])
      end

    emit(e, :where, [emit(e, :isfinite, [refined]), refined, start])
  end

  @doc "The cube root; of a negative number the negative one."
  def cbrt(e, x, {:c, _} = type), do: emit(e, :power, [x, scalar(e, 1 / 3, type)])

  def cbrt(e, x, type) when is_small_float(type) do
    e |> cbrt(astype(e, x, {:f, 32}), {:f, 32}) |> then(&astype(e, &1, type))
  end

  # The exponent 1/3 is rounded; one step of Newton's method makes up for it. It has no meaning
  # at zero and infinity, where the power is exact.
  def cbrt(e, x, type) do
    magnitude = emit(e, :abs, [x])
    root = emit(e, :power, [magnitude, scalar(e, 1 / 3, type)])
    square = emit(e, :square, [root])
    error = emit(e, :subtract, [root, emit(e, :divide, [magnitude, square])])
    step = emit(e, :multiply, [error, scalar(e, 1 / 3, type)])
    better = emit(e, :subtract, [root, step])
    value = emit(e, :where, [emit(e, :isfinite, [better]), better, root])
    emit(e, :where, [emit(e, :less, [x, scalar(e, 0, type)]), emit(e, :negative, [value]), value])
  end

  # erf(x) / x - 1 for small x.
  defp near_zero(e, x) do
    rational(e, emit(e, :square, [x]), @near_zero)
  end

  # erfc of a magnitude from 0.84375 on.
  defp complement(e, magnitude) do
    one = number(e, 1.0)
    s = emit(e, :subtract, [magnitude, one])
    near = emit(e, :subtract, [number(e, 1.0 - @erf_of_one), rational(e, s, @near_one)])

    s = emit(e, :reciprocal, [emit(e, :square, [magnitude])])
    tail = &tail(e, magnitude, rational(e, s, &1))
    far = emit(e, :where, [below(e, magnitude, 1 / 0.35), tail.(@middle), tail.(@far)])
    value = emit(e, :where, [below(e, magnitude, 1.25), near, far])

    # Beyond 28 the result is no double any more, and its formula inf - inf.
    emit(e, :where, [below(e, magnitude, 28.0), value, number(e, 0.0)])
  end

  # exp(-x^2 - 0.5625 + R/S) / x, with the square split so that its rounding does not count.
  defp tail(e, x, ratio) do
    high = e |> astype(x, {:f, 32}) |> then(&astype(e, &1, @f64))
    high_square = emit(e, :square, [high])
    difference = emit(e, :subtract, [high, x])
    sum = emit(e, :add, [high, x])
    correction = emit(e, :add, [emit(e, :multiply, [difference, sum]), ratio])
    first = exp(e, emit(e, :subtract, [emit(e, :negative, [high_square]), number(e, 0.5625)]))
    second = exp(e, correction)
    emit(e, :divide, [emit(e, :multiply, [first, second]), x])
  end

  defp rational(e, x, {above, below}) do
    emit(e, :divide, [polynomial(e, x, above, @f64), polynomial(e, x, below, @f64)])
  end

  defp polynomial(e, x, coefficients, type) do
    [last | rest] = Enum.reverse(coefficients)

    Enum.reduce(rest, scalar(e, last, type), fn coefficient, sum ->
      emit(e, :add, [emit(e, :multiply, [sum, x]), scalar(e, coefficient, type)])
    end)
  end

  defp below(e, x, bound), do: emit(e, :less, [x, number(e, bound)])

  defp number(e, value), do: scalar(e, value, @f64)
end

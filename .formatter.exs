[
  inputs: [
    "{mix,.formatter}.exs",
    "{bench,config,examples,lib,native,test}/**/*.{ex,exs}"
  ]
]

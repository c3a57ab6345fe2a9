cwlVersion: v1.2
class: CommandLineTool
doc: Cuts reads into parts. A read has four lines.
requirements:
  ShellCommandRequirement: {}
  InlineJavascriptRequirement: {}
arguments:
  - {shellQuote: false, position: 0, valueFrom: zcat}
  - {shellQuote: false, position: 2, valueFrom: "| split -d -a 3 -l $(inputs.pairs_per_part * 4) - part."}
inputs:
  reads:
    type: File
    inputBinding: {position: 1}
  pairs_per_part: int
outputs:
  parts:
    type: File[]
    outputBinding: {glob: "part.*"}

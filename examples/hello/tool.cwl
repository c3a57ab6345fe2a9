cwlVersion: v1.2
class: CommandLineTool
doc: Says a message.
baseCommand: echo
inputs:
  message:
    type: string
    doc: what is said
    inputBinding:
      position: 1
outputs:
  said:
    type: stdout
stdout: said.txt

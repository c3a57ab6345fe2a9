#!/usr/bin/env cwl-runner
cwlVersion: v1.2
class: Workflow
doc: |
  Aligns pairs of reads to the genome of the phage lambda: the reads are cut into parts, each of which is aligned by itself,
  and what comes of it is merged, indexed and summed up.

requirements:
  ScatterFeatureRequirement: {}
  StepInputExpressionRequirement: {}
  InlineJavascriptRequirement:
    expressionLib:
      - |
        // A number with so many decimals.
        function rounded(number, decimals) {
          return Number(number.toFixed(decimals));
        }
  DockerRequirement:
    dockerPull: lambda:1

inputs:
  pairs_per_part:
    type: int
    default: 2500
    doc: pairs of reads in a part
  sample:
    type: string
    default: lambda

outputs:
  alignment:
    type: File
    secondaryFiles: [.bai]
    outputSource: merge/bam
  coverage:
    type: File
    outputSource: measure/coverage
  summary:
    type: File
    outputSource: summarise/summary
  mapped_percent:
    type: double
    outputSource: summarise/mapped_percent

steps:
  data:
    in: {}
    out: [genome, first, second]
    run:
      class: CommandLineTool
      doc: Fetches what the package ships.
      baseCommand: [cp, -r, /usr/share/doc/bowtie2/examples/reference, /usr/share/doc/bowtie2/examples/reads, .]
      inputs: {}
      outputs:
        genome:
          type: File
          outputBinding: {glob: reference/lambda_virus.fa.gz}
        first:
          type: File
          outputBinding: {glob: reads/reads_1.fq.gz}
        second:
          type: File
          outputBinding: {glob: reads/reads_2.fq.gz}

  index:
    in: {genome: data/genome}
    out: [index]
    run:
      class: CommandLineTool
      baseCommand: [bowtie2-build, --quiet]
      arguments: [{valueFrom: genome, position: 2}]
      inputs:
        genome:
          type: File
          inputBinding: {position: 1}
      outputs:
        index:
          type: File
          secondaryFiles: [^^.2.bt2, ^^.3.bt2, ^^.4.bt2, ^^.rev.1.bt2, ^^.rev.2.bt2]
          outputBinding: {glob: genome.1.bt2}

  cut_first:
    run: cut.cwl
    in: {reads: data/first, pairs_per_part: pairs_per_part}
    out: [parts]

  cut_second:
    run: cut.cwl
    in: {reads: data/second, pairs_per_part: pairs_per_part}
    out: [parts]

  align:
    scatter: [first, second]
    scatterMethod: dotproduct
    in: {index: index/index, first: cut_first/parts, second: cut_second/parts}
    out: [bam]
    run:
      class: CommandLineTool
      requirements: {ShellCommandRequirement: {}}
      # The index is named by what the names of its files begin with.
      arguments:
        - {shellQuote: false, position: 0, valueFrom: "bowtie2 --quiet -x"}
        - {position: 1, valueFrom: '$(inputs.index.path.replace(/\.1\.bt2$/, ""))'}
        - {shellQuote: false, position: 4, valueFrom: "| samtools sort -o"}
        - {position: 5, valueFrom: $(inputs.first.basename).bam}
      inputs:
        index: {type: File, secondaryFiles: [^^.2.bt2, ^^.3.bt2, ^^.4.bt2, ^^.rev.1.bt2, ^^.rev.2.bt2]}
        first: {type: File, inputBinding: {position: 2, prefix: "-1"}}
        second: {type: File, inputBinding: {position: 3, prefix: "-2"}}
      outputs:
        bam:
          type: File
          outputBinding: {glob: "*.bam"}

  merge:
    in: {parts: align/bam, sample: sample}
    out: [bam]
    run:
      class: CommandLineTool
      requirements: {ShellCommandRequirement: {}}
      arguments:
        - {shellQuote: false, position: 0, valueFrom: "samtools merge -o"}
        - {position: 1, valueFrom: $(inputs.sample).bam}
        - {shellQuote: false, position: 3, valueFrom: "&& samtools index"}
        - {position: 4, valueFrom: $(inputs.sample).bam}
      inputs:
        sample: string
        parts:
          type: File[]
          inputBinding: {position: 2}
      outputs:
        bam:
          type: File
          secondaryFiles: [.bai]
          outputBinding: {glob: $(inputs.sample).bam}

  measure:
    in: {bam: merge/bam}
    out: [flags, coverage]
    run:
      class: CommandLineTool
      requirements: {ShellCommandRequirement: {}}
      arguments:
        - shellQuote: false
          valueFrom: >-
            samtools flagstat -O json "$(inputs.bam.path)" > flags.json &&
            samtools coverage "$(inputs.bam.path)" > coverage.txt
      inputs:
        bam: {type: File, secondaryFiles: [.bai]}
      outputs:
        flags:
          type: File
          outputBinding: {glob: flags.json}
        coverage:
          type: File
          outputBinding: {glob: coverage.txt}

  summarise:
    in:
      flags: {source: measure/flags, loadContents: true}
      coverage: {source: measure/coverage, loadContents: true}
      sample: sample
    out: [summary, mapped_percent]
    run:
      class: ExpressionTool
      inputs:
        flags: File
        coverage: File
        sample: string
      outputs:
        summary: File
        mapped_percent: double
      expression: |
        ${
          var reads = JSON.parse(inputs.flags.contents)["QC-passed reads"];
          var lines = inputs.coverage.contents.trim().split("\n").map(function (line) { return line.split("\t"); });
          var genome = {};
          lines[0].forEach(function (name, i) { genome[name.replace("#", "")] = lines[1][i]; });
          var percent = rounded(100 * reads.mapped / reads.total, 2);
          var summary = {
            sample: inputs.sample,
            genome: genome.rname,
            reads: reads.total,
            mapped: reads.mapped,
            mapped_percent: percent,
            covered_percent: rounded(Number(genome.coverage), 2),
            mean_depth: rounded(Number(genome.meandepth), 1)
          };
          return {
            summary: {
              "class": "File",
              basename: inputs.sample + ".json",
              contents: JSON.stringify(summary, null, 2) + "\n"
            },
            mapped_percent: percent
          };
        }

package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"text/template"
	"text/template/parse"
	"time"
	"unicode"

	"github.com/docker/go-units"
)

// Column is one column of a table: its heading and the template field it shows.
type Column struct{ Title, Field string }

// Table writes rows in one of the formats that --format knows: "" or "table" (the columns),
// "table TEMPLATE" (a heading and aligned rows), "json" (one object a line), or a Go template.
// Each row maps the field names of docker's own templates to strings.
type Table struct {
	Columns []Column
	Rows    []map[string]string
}

// Write writes the table to w.
func (t *Table) Write(w io.Writer, format string) error {
	rest, isTable := strings.CutPrefix(format, "table")
	rest = strings.TrimSpace(rest)
	switch {
	case format == "" || isTable && rest == "":
		return t.columns(w)
	case format == "json" || format == "{{json .}}":
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		for _, r := range t.Rows {
			if err := enc.Encode(r); err != nil {
				return err
			}
		}
		return nil
	case isTable:
		return t.template(w, rest, true)
	}
	return t.template(w, format, false)
}

func (t *Table) columns(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
	line := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		line[i] = c.Title
	}
	_, _ = fmt.Fprintln(tw, strings.Join(line, "\t"))
	for _, r := range t.Rows {
		for i, c := range t.Columns {
			line[i] = r[c.Field]
		}
		_, _ = fmt.Fprintln(tw, strings.Join(line, "\t"))
	}
	return tw.Flush()
}

func (t *Table) template(w io.Writer, text string, heading bool) error {
	text = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(text)
	tmpl, err := ParseTemplate(text)
	if err != nil {
		return err
	}
	var b bytes.Buffer // whole, or an error
	out := io.Writer(&b)
	if heading {
		out = tabwriter.NewWriter(&b, 10, 1, 3, ' ', 0)
		if err := t.heading(out, tmpl); err != nil {
			return err
		}
	}
	for _, r := range t.Rows {
		if err := Execute(out, tmpl, r); err != nil {
			return err
		}
	}
	if tw, ok := out.(*tabwriter.Writer); ok {
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	_, err = w.Write(b.Bytes())
	return err
}

// heading writes the titles in the places where the template has fields. Functions that cut or
// turn values leave titles alone.
func (t *Table) heading(w io.Writer, tmpl *template.Template) error {
	titles := map[string]string{}
	for _, f := range fields(tmpl.Root) {
		titles[f] = title(f)
	}
	for _, c := range t.Columns {
		titles[c.Field] = c.Title
	}
	same := func(s string) string { return s }
	top, err := tmpl.Clone()
	if err != nil {
		return fmt.Errorf("write heading: %w", err)
	}
	top.Funcs(template.FuncMap{
		"json": same, "lower": same, "upper": same, "title": same,
		"truncate": func(s string, _ int) string { return s },
		"pad":      func(s string, _, _ int) string { return s },
		"split":    func(s, _ string) []string { return []string{s} },
	})
	return Execute(w, top, titles)
}

// fields are the names of the fields that a template shows.
func fields(n parse.Node) []string {
	var names []string
	add := func(nodes ...parse.Node) {
		for _, n := range nodes {
			names = append(names, fields(n)...)
		}
	}
	switch n := n.(type) {
	case *parse.ListNode:
		if n != nil {
			add(n.Nodes...)
		}
	case *parse.ActionNode:
		add(n.Pipe)
	case *parse.PipeNode:
		if n != nil {
			for _, c := range n.Cmds {
				add(c.Args...)
			}
		}
	case *parse.IfNode:
		add(n.Pipe, n.List, n.ElseList)
	case *parse.WithNode:
		add(n.Pipe, n.List, n.ElseList)
	case *parse.RangeNode:
		add(n.Pipe, n.List, n.ElseList)
	case *parse.FieldNode:
		names = append(names, n.Ident[0])
	}
	return names
}

// title is the heading of a field that is in no column: CreatedAt is CREATED AT.
func title(field string) string {
	var b strings.Builder
	before := 'A'
	for _, r := range field {
		if unicode.IsUpper(r) && !unicode.IsUpper(before) {
			b.WriteByte(' ')
		}
		b.WriteRune(unicode.ToUpper(r))
		before = r
	}
	return b.String()
}

// ParseTemplate parses a --format template with the functions that docker's templates have.
func ParseTemplate(text string) (*template.Template, error) {
	tmpl, err := template.New("format").Funcs(template.FuncMap{
		"json": func(v any) (string, error) {
			b, err := json.Marshal(v)
			return string(b), err
		},
		"join":  func(list []string, sep string) string { return strings.Join(list, sep) },
		"split": func(s, sep string) []string { return strings.Split(s, sep) },
		"lower": strings.ToLower,
		"upper": strings.ToUpper,
		"title": func(s string) string {
			if s == "" {
				return s
			}
			return strings.ToUpper(s[:1]) + s[1:]
		},
		"pad": func(s string, before, after int) string {
			return strings.Repeat(" ", max(before, 0)) + s + strings.Repeat(" ", max(after, 0))
		},
		"println": fmt.Sprintln,
		"truncate": func(s string, n int) string {
			if r := []rune(s); n >= 0 && len(r) > n {
				return string(r[:n])
			}
			return s
		},
	}).Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, Usagef("--format: %w", err)
	}
	return tmpl, nil
}

// Execute writes one line from a template.
func Execute(w io.Writer, tmpl *template.Template, data any) error {
	var b strings.Builder
	if err := tmpl.Execute(&b, data); err != nil {
		return Usagef("--format: %w", err)
	}
	_, err := fmt.Fprintln(w, b.String())
	return err
}

// Documents writes what "inspect" prints: a JSON array of docs, or a template line for each.
func (e *Env) Documents(format string, docs []any) error {
	if format == "" || format == "json" {
		if docs == nil {
			docs = []any{}
		}
		enc := json.NewEncoder(e.Out)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "    ")
		return enc.Encode(docs)
	}
	tmpl, err := ParseTemplate(format)
	if err != nil {
		return err
	}
	for _, d := range docs {
		if err := executeDocument(e.Out, tmpl, d); err != nil {
			return err
		}
	}
	return nil
}

// executeDocument fills a template from the names that Go has for the fields of d, and where
// it has none, from those of its JSON: {{.Id}} is what docker's users write.
func executeDocument(w io.Writer, tmpl *template.Template, d any) error {
	err := Execute(w, tmpl, d)
	if err == nil {
		return nil
	}
	b, e := json.Marshal(d)
	if e != nil {
		return err
	}
	var raw any
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if dec.Decode(&raw) != nil || Execute(w, tmpl, raw) != nil {
		return err
	}
	return nil
}

// Inspect gathers a document for each ref and writes them. What is missing is told on Err;
// what was found is written all the same, and the exit code is 1, as docker's is.
func (e *Env) Inspect(format string, refs []string, get func(ref string) (any, error)) error {
	var docs []any
	var failed error
	for _, ref := range refs {
		d, err := get(ref)
		if err != nil {
			e.Complain(err)
			failed = Exit(1)
			continue
		}
		docs = append(docs, d)
	}
	if err := e.Documents(format, docs); err != nil {
		return err
	}
	return failed
}

// Size writes bytes as docker does: powers of ten, three digits.
func Size(bytes int64) string { return units.HumanSizeWithPrecision(float64(bytes), 3) }

// Ago writes how long before now t was.
func (e *Env) Ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return units.HumanDuration(e.Now().Sub(t)) + " ago"
}

// Short cuts an id, or a digest, to the twelve digits that people read.
func Short(id string) string {
	if _, hex, ok := strings.Cut(id, ":"); ok {
		id = hex
	}
	return id[:min(len(id), 12)]
}

// Count writes a number, and a dash for one that is not known (negative).
func Count(n int64) string {
	if n < 0 {
		return "-"
	}
	return strconv.FormatInt(n, 10)
}

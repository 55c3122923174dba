package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

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
	out := w
	if heading {
		tw := tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
		defer tw.Flush() //nolint:errcheck // the writes below have told
		out = tw
		titles := map[string]string{}
		for _, c := range t.Columns {
			titles[c.Field] = c.Title
		}
		if err := Execute(out, tmpl, titles); err != nil {
			return err
		}
	}
	for _, r := range t.Rows {
		if err := Execute(out, tmpl, r); err != nil {
			return err
		}
	}
	return nil
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
		if err := Execute(e.Out, tmpl, d); err != nil {
			return err
		}
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

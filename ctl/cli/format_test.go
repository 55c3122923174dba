package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestTable(t *testing.T) {
	t.Parallel()
	columns := []Column{{Title: "CONTAINER ID", Field: "ID"}, {Title: "NAMES", Field: "Names"}}
	full := &Table{Columns: columns, Rows: []map[string]string{
		{"ID": "0123456789ab", "Names": "web", "CreatedAt": "now", "Labels": "a=<b>"},
		{"ID": "ba9876543210", "Names": "a-long-name", "CreatedAt": "then", "Labels": ""},
	}}
	empty := &Table{Columns: columns}
	for _, c := range []struct {
		t            *Table
		format, want string
	}{
		{full, "", "CONTAINER ID   NAMES\n0123456789ab   web\nba9876543210   a-long-name\n"},
		{full, "table", "CONTAINER ID   NAMES\n0123456789ab   web\nba9876543210   a-long-name\n"},
		{empty, "", "CONTAINER ID   NAMES\n"},
		{full, "{{.Names}}", "web\na-long-name\n"},
		{full, `{{.ID}}\t{{.Names}}`, "0123456789ab\tweb\nba9876543210\ta-long-name\n"},
		{empty, "{{.Names}}", ""},
		{full, `table {{.Names}}\t{{.ID}}`, "NAMES         CONTAINER ID\nweb           0123456789ab\na-long-name   ba9876543210\n"},
		{full, `table {{.Names}}\t{{.CreatedAt}}`, "NAMES         CREATED AT\nweb           now\na-long-name   then\n"},
		{empty, `table {{.Names}}\t{{.CreatedAt}}`, "NAMES     CREATED AT\n"},
		{full, "table {{truncate .ID 3}}", "CONTAINER ID\n012\nba9\n"},
		{full, "table {{.ID | upper | lower}}", "CONTAINER ID\n0123456789ab\nba9876543210\n"},
		{full, "table {{if .Labels}}{{.Labels}}{{else}}-{{end}}", "LABELS\na=<b>\n-\n"},
		{full, "{{json .Labels}}", "\"a=\\u003cb\\u003e\"\n\"\"\n"},
		{full, "{{title .Names}} {{pad .Names 1 2}}|{{index (split .Names \"-\") 0}}", "Web  web  |web\nA-long-name  a-long-name  |a\n"},
		{
			full, "json",
			`{"CreatedAt":"now","ID":"0123456789ab","Labels":"a=<b>","Names":"web"}` + "\n" +
				`{"CreatedAt":"then","ID":"ba9876543210","Labels":"","Names":"a-long-name"}` + "\n",
		},
		{empty, "json", ""},
	} {
		var out bytes.Buffer
		if err := c.t.Write(&out, c.format); err != nil || out.String() != c.want {
			t.Errorf("%q: %v\n%s\nwant\n%s", c.format, err, out.String(), c.want)
		}
	}
	for _, bad := range []string{"{{.Nmaes}}", "table {{.Nmaes}}", "{{.Names", "{{nofunc .Names}}"} {
		var out bytes.Buffer
		if err := full.Write(&out, bad); ExitCode(err) != 2 || !strings.Contains(err.Error(), "--format") || out.Len() > 0 {
			t.Errorf("%q: %v, and wrote %q", bad, err, out.String())
		}
	}
}

func TestDocuments(t *testing.T) {
	t.Parallel()
	type state struct{ Pid uint32 }
	type document struct {
		ID    string `json:"Id"`
		State state
	}
	docs := []any{&document{"<x>", state{1000000}}}
	for _, c := range []struct {
		docs         []any
		format, want string
	}{
		{nil, "", "[]\n"},
		{nil, "{{.Id}}", ""},
		{docs, "", "[\n    {\n        \"Id\": \"<x>\",\n        \"State\": {\n            \"Pid\": 1000000\n        }\n    }\n]\n"},
		{docs, "{{.State.Pid}}", "1000000\n"},
		{docs, "{{.ID}}", "<x>\n"},
		{docs, "{{.Id}}", "<x>\n"}, // docker's word for it
		{docs, "{{.Id}} {{.State.Pid}}", "<x> 1000000\n"},
		{docs, "{{json .State}}", "{\"Pid\":1000000}\n"},
	} {
		var out bytes.Buffer
		e := &Env{Out: &out}
		if err := e.Documents(c.format, c.docs); err != nil || out.String() != c.want {
			t.Errorf("%q: %v\n%s\nwant\n%s", c.format, err, out.String(), c.want)
		}
	}
	for _, bad := range []string{"{{.Nothing}}", "{{.State.Nothing}}", "{{"} {
		e := &Env{Out: &bytes.Buffer{}}
		if err := e.Documents(bad, docs); ExitCode(err) != 2 {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestWords(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	e := &Env{Now: func() time.Time { return now }}
	for got, want := range map[string]string{
		Short("sha256:0123456789abcdef"): "0123456789ab", Short("short"): "short", Size(1234567): "1.23MB",
		Count(-1): "-", Count(7): "7", e.Ago(now.Add(-2 * time.Hour)): "2 hours ago", e.Ago(time.Time{}): "",
		title("ID"): "ID", title("CreatedAt"): "CREATED AT", title("Names"): "NAMES",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

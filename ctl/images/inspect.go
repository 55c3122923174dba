package images

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/ctl/cli"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
)

func newInspectCommand(env *cli.Env) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "inspect [flags] IMAGE...", Short: "Show all that is known of images",
		Args: cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.Inspect(format, args, func(ref string) (any, error) { return Document(cmd.Context(), env, ref) })
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "a template, as in '{{.Config.Cmd}}', or json")
	return cmd
}

type inspectDocument struct {
	ID           string `json:"Id"`
	RepoTags     []string
	RepoDigests  []string
	Created      string
	Author       string
	Architecture string
	Variant      string `json:",omitempty"`
	Os           string
	Size         int64
	Config       inspectConfig
	RootFS       inspectRootFS
	Gantry       inspectGantry
}

type inspectConfig struct {
	User         string
	Env          []string
	Entrypoint   []string
	Cmd          []string
	WorkingDir   string
	StopSignal   string              `json:",omitempty"`
	ExposedPorts map[string]struct{} `json:",omitempty"`
	Volumes      map[string]struct{} `json:",omitempty"`
	Labels       map[string]string
}

type inspectRootFS struct {
	Type   string
	Layers []string
}

// inspectGantry is what docker has no word for.
type inspectGantry struct {
	Manifest string
	ChainID  string
	Unpacked []string
	Layers   []inspectLayer
}

type inspectLayer struct {
	Digest, MediaType, DiffID, ChainID string
	Size, Bytes                        int64
}

// Document is what inspect shows of one image, under the names that docker's users know.
func Document(ctx context.Context, env *cli.Env, ref string) (any, error) {
	got, err := env.Images().Get(ctx, &imagesv1.GetRequest{Ref: ref})
	if err != nil {
		return nil, err
	}
	i := got.GetImage()
	d := &inspectDocument{
		ID: i.GetConfigDescriptor().GetDigest(), RepoTags: []string{}, RepoDigests: []string{},
		Created: i.GetConfig().GetCreatedAt().AsTime().Format(time.RFC3339Nano), Author: i.GetConfig().GetAuthor(), Size: i.GetBytes(),
		Config: inspectConfig{
			User: i.GetConfig().GetUser(), Env: i.GetConfig().GetEnv(), Entrypoint: i.GetConfig().GetEntrypoint(), Cmd: i.GetConfig().GetCmd(),
			WorkingDir: i.GetConfig().GetWorkdir(), StopSignal: i.GetConfig().GetStopSignal(),
			ExposedPorts: set(i.GetConfig().GetExposedPorts()), Volumes: set(i.GetConfig().GetVolumes()), Labels: i.GetConfig().GetLabels(),
		},
		RootFS: inspectRootFS{Type: "layers", Layers: []string{}},
		Gantry: inspectGantry{Manifest: i.GetManifest().GetDigest(), ChainID: i.GetChainId(), Unpacked: i.GetUnpacked()},
	}
	for _, name := range got.GetTags() {
		repository, tag := familiar(name)
		d.RepoTags = append(d.RepoTags, repository+":"+tag)
	}
	for _, name := range got.GetDigests() {
		repository, _ := familiar(name)
		_, digest, _ := strings.Cut(name, "@")
		d.RepoDigests = append(d.RepoDigests, repository+"@"+digest)
	}
	d.Os, d.Architecture, _ = strings.Cut(i.GetPlatform(), "/")
	d.Architecture, d.Variant, _ = strings.Cut(d.Architecture, "/")
	for _, l := range i.GetLayers() {
		d.RootFS.Layers = append(d.RootFS.Layers, l.GetDiffId())
		d.Gantry.Layers = append(d.Gantry.Layers, inspectLayer{
			Digest: l.GetBlob().GetDigest(), MediaType: l.GetBlob().GetMediaType(), DiffID: l.GetDiffId(), ChainID: l.GetChainId(),
			Size: l.GetBlob().GetSize(), Bytes: l.GetBytes(),
		})
	}
	return d, nil
}

func set(words []string) map[string]struct{} {
	m := map[string]struct{}{}
	for _, w := range words {
		m[w] = struct{}{}
	}
	return m
}

func newHistoryCommand(env *cli.Env) *cobra.Command {
	var format string
	var noTrunc bool
	cmd := &cobra.Command{
		Use: "history [flags] IMAGE", Short: "Show the layers of an image, newest first",
		Args: cli.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			got, err := env.Images().Get(cmd.Context(), &imagesv1.GetRequest{Ref: args[0]})
			if err != nil {
				return err
			}
			return history(env, got.GetImage(), format, noTrunc)
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "table, json, or a template: {{.ID}} {{.CreatedBy}} {{.Size}}")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "do not shorten")
	return cmd
}

func history(env *cli.Env, i *imagesv1.Image, format string, noTrunc bool) error {
	t := &cli.Table{Columns: []cli.Column{{Title: "LAYER", Field: "ID"}, {Title: "CREATED BY", Field: "CreatedBy"}, {Title: "SIZE", Field: "Size"}}}
	layers := i.GetLayers()
	for n := len(layers) - 1; n >= 0; n-- {
		l := layers[n]
		id, by := l.GetDiffId(), l.GetCreatedBy()
		if !noTrunc {
			id = cli.Short(id)
			if r := []rune(by); len(r) > 45 {
				by = string(r[:44]) + "…"
			}
		}
		t.Rows = append(t.Rows, map[string]string{"ID": id, "CreatedBy": by, "Size": cli.Size(l.GetBytes()), "Bytes": fmt.Sprint(l.GetBytes())})
	}
	return t.Write(env.Out, format)
}

package images

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/ctl/cli"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
)

type pullOptions struct {
	platform, snapshotter, username string
	quiet, plainHTTP, passwordStdin bool
}

func newPullCommand(env *cli.Env) *cobra.Command {
	var o pullOptions
	cmd := &cobra.Command{
		Use: "pull [flags] IMAGE", Short: "Fetch an image from a registry",
		Example: "  gantry pull debian:bookworm\n  gantry pull localhost:5000/app@sha256:…",
		Args:    cli.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return runPull(cmd.Context(), env, o, args[0]) },
	}
	fs := cmd.Flags()
	fs.StringVar(&o.platform, "platform", "", "os/arch[/variant] (default: this machine's)")
	fs.StringVar(&o.snapshotter, "snapshotter", "", "storage driver to unpack for (default: the daemon's)")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "only print the image's name at the end")
	fs.BoolVar(&o.plainHTTP, "plain-http", false, "speak HTTP without TLS to this registry; anyone between can change what comes")
	fs.StringVar(&o.username, "username", "", "who to say you are, if the registry asks; the password is read from GANTRY_PASSWORD or --password-stdin")
	fs.BoolVar(&o.passwordStdin, "password-stdin", false, "read the password from stdin")
	return cmd
}

func runPull(ctx context.Context, env *cli.Env, o pullOptions, ref string) error {
	auth, err := o.auth(env)
	if err != nil {
		return err
	}
	image, err := Pull(ctx, env, &imagesv1.PullRequest{
		Ref: ref, Platform: o.platform, Snapshotter: o.snapshotter, PlainHttp: o.plainHTTP, Auth: auth,
	}, o.quiet, env.Out)
	if err != nil {
		return err
	}
	if !o.quiet {
		_, _ = fmt.Fprintln(env.Out, "Digest: "+image.GetTarget().GetDigest())
	}
	_, err = fmt.Fprintln(env.Out, image.GetMeta().GetName())
	return err
}

// auth is who the user says they are. A password on the command line would be in everybody's
// process list, so there is no flag for one.
func (o *pullOptions) auth(env *cli.Env) (*imagesv1.Auth, error) {
	if o.username == "" {
		if o.passwordStdin {
			return nil, cli.Usagef("--password-stdin: --username is missing")
		}
		return nil, nil //nolint:nilnil // anonymous
	}
	password := os.Getenv("GANTRY_PASSWORD")
	if o.passwordStdin {
		raw, err := io.ReadAll(io.LimitReader(env.In, 1<<20))
		if err != nil {
			return nil, fmt.Errorf("read password: %w", err)
		}
		password = string(trimNewline(raw))
	}
	if password == "" {
		return nil, cli.Usagef("--username %s: no password; set GANTRY_PASSWORD or use --password-stdin", o.username)
	}
	return &imagesv1.Auth{Username: o.username, Password: password}, nil
}

func trimNewline(b []byte) []byte {
	for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == '\r') {
		b = b[:len(b)-1]
	}
	return b
}

// Pull pulls an image, shows on out how it goes, and returns what came.
func Pull(ctx context.Context, env *cli.Env, req *imagesv1.PullRequest, quiet bool, out io.Writer) (*imagesv1.Image, error) {
	stream, err := env.Images().Pull(ctx, req)
	if err != nil {
		return nil, err
	}
	show := newProgress(env, out, quiet)
	var image *imagesv1.Image
	err = cli.Stream(stream.Recv, func(m *imagesv1.PullResponse) error {
		if p := m.GetProgress(); p != nil {
			show.update(p)
		}
		if i := m.GetImage(); i != nil {
			image = i
		}
		return nil
	})
	show.close(err == nil)
	if err != nil {
		return nil, err
	}
	if image == nil {
		return nil, fmt.Errorf("pull image %s: the daemon ended without an image", req.GetRef())
	}
	return image, nil
}

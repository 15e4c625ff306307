package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

type siteAddOptions struct {
	provider, gateway, file string
	settings                []string
}

func (a *app) siteAdd() *cobra.Command {
	var o siteAddOptions
	cmd := &cobra.Command{
		Use:     "add NAME --provider PROVIDER [--set KEY=VALUE]…",
		Short:   "Add a site, once its provider has answered",
		Example: "  holdfast site add berlin --provider libvirt --set uri=qemu:///system\n  holdfast site add paris --provider qemu --settings site.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.provider == "" {
				return usagef("site add needs --provider, like libvirt or qemu")
			}
			settings, err := o.read(a.Stdin)
			if err != nil {
				return err
			}
			return a.with(func(c *api.Client) error {
				site, err := c.AddSite(cmd.Context(), api.AddSite{Name: args[0], Provider: o.provider, Settings: settings, Gateway: o.gateway})
				if err != nil {
					return err
				}
				if a.json {
					printJSON(a.Stdout, site)
					return nil
				}
				fmt.Fprintf(a.Stdout, "Added site %s (%s). It can %s.\n", plain(site.Name), plain(site.Provider), siteUse(site))
				fmt.Fprintf(a.Stdout, "See its machines: holdfast machine list --site %s\n", plain(site.Name))
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&o.provider, "provider", "", "what sees the machines: libvirt, qemu, …")
	cmd.Flags().StringArrayVar(&o.settings, "set", nil, "a setting of the provider, KEY=VALUE; VALUE is JSON, or else text")
	cmd.Flags().StringVar(&o.file, "settings", "", "file with all settings of the provider as a JSON object; - for the standard input")
	cmd.Flags().StringVar(&o.gateway, "gateway", "", "the gateway beside the site's machines; the server's own if not given")
	return cmd
}

// read returns the provider's settings as one object.
func (o *siteAddOptions) read(stdin io.Reader) (json.RawMessage, error) {
	all := map[string]json.RawMessage{}
	if o.file != "" {
		var data []byte
		var err error
		if o.file == "-" {
			data, err = io.ReadAll(io.LimitReader(stdin, 1<<20))
		} else {
			data, err = os.ReadFile(o.file)
		}
		if err != nil {
			return nil, &api.Problem{Code: api.CodeInvalid, Detail: "the settings cannot be read", Cause: err.Error()}
		}
		if err := json.Unmarshal(data, &all); err != nil {
			return nil, usagef("the settings in %s are not a JSON object: %v", o.file, err)
		}
	}
	for _, pair := range o.settings {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, usagef("--set %s is not of the form KEY=VALUE", pair)
		}
		if !json.Valid([]byte(value)) {
			text, err := json.Marshal(value)
			if err != nil {
				return nil, fmt.Errorf("encode setting %s: %w", key, err)
			}
			value = string(text)
		}
		all[key] = json.RawMessage(value)
	}
	if len(all) == 0 {
		return nil, nil
	}
	return json.Marshal(all)
}

// siteUse says in words what a site can do.
func siteUse(s api.Site) string {
	switch {
	case s.CanSource && s.CanTarget:
		return "protect and recover"
	case s.CanSource:
		return "protect"
	case s.CanTarget:
		return "recover"
	}
	return "only be looked at"
}

// Verifies and signs SIF files with the format's own library, for tests that hold ours against it.
//
//	verify FILE KEYRING    prints a line for each signature, and fails unless all is verified
//	sign FILE SECRET-KEYS  signs with the first key
package main

import (
	"fmt"
	"os"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/sylabs/sif/v2/pkg/integrity"
	"github.com/sylabs/sif/v2/pkg/sif"
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run(what, path, keys string) error {
	file, err := os.Open(keys)
	if err != nil {
		return err
	}
	keyring, err := openpgp.ReadKeyRing(file)
	if err != nil {
		return err
	}
	image, err := sif.LoadContainerFromPath(path)
	if err != nil {
		return err
	}
	defer image.UnloadContainer()
	if what == "sign" {
		signer, err := integrity.NewSigner(image, integrity.OptSignWithEntity(keyring[0]))
		if err != nil {
			return err
		}
		return signer.Sign()
	}
	told := func(r integrity.VerifyResult) bool {
		fmt.Printf("signature %d: %d verified, %v\n", r.Signature().ID(), len(r.Verified()), r.Error())
		return false
	}
	verifier, err := integrity.NewVerifier(image,
		integrity.OptVerifyWithKeyRing(keyring), integrity.OptVerifyCallback(told))
	if err != nil {
		return err
	}
	return verifier.Verify()
}

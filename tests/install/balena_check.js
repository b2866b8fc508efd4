// Reads docker-compose.yml and balena.yml with balena's own packages, and prints what they make of them as JSON.
// Run by test_balena.py: node balena_check.js COMPOSE CONTRACT DEVICE_TYPE..., with NODE_PATH at the packages.

const { readFileSync } = require("fs");
const { parse } = require("@balena/compose-parser");
const { Contract } = require("@balena/contrato");
const yaml = require("js-yaml");

async function main([composePath, contractPath, ...deviceTypes]) {
  const composition = await parse(composePath);
  const written = yaml.load(readFileSync(contractPath, "utf8"));
  const supported = written.data.supportedDeviceTypes.map((slug) => ({ type: "hw.device-type", slug }));
  const [contract] = Contract.build({ slug: written.name, ...written, requires: [{ or: supported }] });
  const runsOn = deviceTypes.filter((slug) => {
    const device = new Contract({ type: "meta.context" });
    return device.addChild(new Contract({ type: "hw.device-type", slug })).satisfiesChildContract(contract);
  });
  console.log(JSON.stringify({ composition, contract: contract.toJSON(), runsOn }));
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error.message);
  process.exit(1);
});

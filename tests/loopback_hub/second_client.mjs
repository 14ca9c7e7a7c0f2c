// The npm client `@huggingface/hub` against a loopback Hub: node second_client.mjs FOLDER ENDPOINT TOKEN REPO
// FOLDER is where it is installed. Prints one JSON document: what each call gave.
import { pathToFileURL } from "node:url";

const [folder, hubUrl, accessToken, repo] = process.argv.slice(2);
const entry = pathToFileURL(`${folder}/node_modules/@huggingface/hub/dist/index.mjs`);
const hub = await import(entry.href);
const common = { hubUrl, accessToken, repo };
const all = async (items) => {
  const found = [];
  for await (const item of items) found.push(item);
  return found;
};
const add = (path, content) => ({ operation: "addOrUpdate", path, content: new Blob([content]) });
const told = {};

told.user = (await hub.whoAmI({ hubUrl, accessToken })).name;
await hub.createRepo(common);
const weights = new Uint8Array(100_000).map((_, index) => index % 251);
const first = await hub.commit({
  ...common,
  title: "From the second client",
  operations: [add("direction.json", "{}"), add("deep/er.safetensors", weights), add("gone.txt", "gone")],
});
told.first = first.commit.oid;
try {
  const operations = [add("late.txt", "late")];
  await hub.commit({ ...common, title: "late", operations, parentCommit: "0".repeat(40) });
} catch (error) {
  told.stale = error.statusCode;
}
told.deleted = (await hub.deleteFile({ ...common, path: "gone.txt" })).commit.oid;
await hub.createBranch({ ...common, branch: "try" });
told.exists = [await hub.fileExists({ ...common, path: "direction.json" }), await hub.fileExists({ ...common, path: "no" })];
told.files = (await all(hub.listFiles({ ...common, recursive: true }))).map(({ path, type, size }) => [path, type, size]);
told.commits = (await all(hub.listCommits(common))).map(({ oid, title }) => [oid, title]);
told.info = (await hub.modelInfo({ hubUrl, accessToken, name: repo, additionalFields: ["sha"] })).sha;
const read = async (path) => Buffer.from(await (await hub.downloadFile({ ...common, path })).arrayBuffer());
told.small = (await read("direction.json")).toString();
told.large = (await read("deep/er.safetensors")).equals(Buffer.from(weights));
told.models = (await all(hub.listModels({ hubUrl, accessToken, search: { owner: repo.split("/")[0] } }))).map(
  ({ name }) => name,
);
process.stdout.write(JSON.stringify(told));
